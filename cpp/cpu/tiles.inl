// The tile instructions of AMX. gcc 12's intrinsics tell the compiler too little about memory (a load names none, a
// configuration 8 bytes of its 64), so each is an asm of its own that orders memory. Included inside a tier's anonymous
// namespace.
//
// There are eight tiles of at most 16 rows of 64 bytes. A product C += A B takes A [rows][depth], B [depth / p][columns][p]
// and C [rows][columns] of 32 bits, where p numbers along k fill 32 bits: 4 int8 or 2 bf16.
struct TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};  // of tiles 0 .. 7; the rest stays zero
    uint8_t rows[16] = {};

    INLINE void set(int tile, int64_t count, int64_t bytes) {
        rows[tile] = uint8_t(count);
        row_bytes[tile] = uint16_t(bytes);
    }
};
static_assert(sizeof(TileShapes) == 64, "as ldtilecfg reads it");

// Clears all tiles.
INLINE void tile_config(const TileShapes& shapes) { asm volatile("ldtilecfg %0" ::"m"(shapes) : "memory"); }
// Tiles in use make every switch to another thread save 8 KiB more, and may hold the clock down.
INLINE void tile_release() { asm volatile("tilerelease" ::: "memory"); }

template <int tile>
INLINE void tile_zero() {
    asm volatile("tilezero %%tmm%c0" ::"n"(tile));
}
// stride: bytes from row to row.
template <int tile>
INLINE void tile_load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "n"(tile) : "memory");
}
template <int tile>
INLINE void tile_store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "n"(tile) : "memory");
}
// c += a b, signed bytes into i32.
template <int c, int a, int b>
INLINE void tile_dot_i8() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"n"(c), "n"(a), "n"(b));
}
// c += a b, bf16 into f32: for each element a chain of FMAs over the even k and one over the odd ones, both from zero, and
// c + (even + odd). Denormals are zeros, on either side.
template <int c, int a, int b>
INLINE void tile_dot_bf16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"n"(c), "n"(a), "n"(b));
}
