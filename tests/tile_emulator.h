// AMX for a processor without it: the tile instructions of this program's own machine code are carried out by the signal
// handler of the illegal-instruction trap, as Intel's manual defines them. So a tier for AMX is tested as it was compiled,
// its encodings, operand orders and tile shapes included; what a processor would refuse ends the program. Included once.
// On a processor that has AMX nothing traps, and only the permission is asked for.
#pragma once
#include <immintrin.h>
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace tile_emulator {

struct Tile {
    uint8_t row[16][64];
};

struct State {
    bool configured = false;
    Tile tiles[8];
    uint8_t rows[8];
    uint16_t row_bytes[8];
};

inline thread_local State state;
inline thread_local int64_t carried_out = 0;  // instructions

[[noreturn]] inline void refuse(const char* why, const uint8_t* code) {
    fprintf(stderr, "tile emulator: %s, at", why);
    for (int i = 0; i < 10; i++) fprintf(stderr, " %02x", code[i]);
    fprintf(stderr, "\n");
    _exit(3);
}

inline void configure(const uint8_t* c, const uint8_t* code) {
    if (c[0] != 1) refuse("palette is not 1", code);
    for (int i = 1; i < 64; i++) {
        const bool reserved = i < 16 || (i >= 32 && i < 48) || i >= 56;
        if (reserved && c[i] != 0) refuse("reserved byte of the configuration is not zero", code);
    }
    for (int i = 0; i < 8; i++) {
        memcpy(&state.row_bytes[i], c + 16 + 2 * i, 2);
        state.rows[i] = c[48 + i];
        if (state.rows[i] > 16 || state.row_bytes[i] > 64 || state.row_bytes[i] % 4 != 0) refuse("tile too large", code);
        if ((state.rows[i] == 0) != (state.row_bytes[i] == 0)) refuse("tile half empty", code);
    }
    memset(state.tiles, 0, sizeof state.tiles);
    state.configured = true;
}

inline void check_tile(int t, const uint8_t* code) {
    if (!state.configured) refuse("tiles are not configured", code);
    if (t > 7 || state.rows[t] == 0) refuse("tile is not configured", code);
}

inline void check_product(int c, int a, int b, const uint8_t* code) {
    for (int t : {c, a, b}) check_tile(t, code);
    if (c == a || c == b || a == b) refuse("tiles of a product are not distinct", code);
    if (state.rows[c] != state.rows[a] || state.row_bytes[c] != state.row_bytes[b] || state.row_bytes[a] != 4 * state.rows[b])
        refuse("shapes of a product disagree", code);
}

// Signed bytes of a by those of b, which are T.
template <class T>
void dot_i8(int c, int a, int b) {
    const int columns = state.row_bytes[c] / 4, depth = state.rows[b];
    for (int m = 0; m < state.rows[c]; m++) {
        int32_t sums[16];
        memcpy(sums, state.tiles[c].row[m], 64);
        for (int k = 0; k < depth; k++) {
            const int8_t* x = reinterpret_cast<const int8_t*>(state.tiles[a].row[m]) + 4 * k;
            const T* w = reinterpret_cast<const T*>(state.tiles[b].row[k]);
            for (int n = 0; n < columns; n++) {
                for (int i = 0; i < 4; i++) sums[n] += int32_t(x[i]) * w[4 * n + i];
            }
        }
        memset(state.tiles[c].row[m], 0, 64);
        memcpy(state.tiles[c].row[m], sums, size_t(columns) * 4);
    }
}

inline float widen(const uint8_t* p) {
    uint32_t bits = uint32_t(p[0]) << 16 | uint32_t(p[1]) << 24;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// Round to nearest even, denormals are zeros on either side, and MXCSR is neither read nor written.
inline void dot_bf16(int c, int a, int b) {
    const unsigned before = _mm_getcsr();
    _mm_setcsr(0x9fc0);
    const int columns = state.row_bytes[c] / 4, depth = state.rows[b];
    for (int m = 0; m < state.rows[c]; m++) {
        float even[16] = {}, odd[16] = {}, sums[16];
        for (int k = 0; k < depth; k++) {
            const uint8_t* x = state.tiles[a].row[m] + 4 * k;
            for (int n = 0; n < columns; n++) {
                const uint8_t* w = state.tiles[b].row[k] + 4 * n;
                even[n] = fmaf(widen(x), widen(w), even[n]);
                odd[n] = fmaf(widen(x + 2), widen(w + 2), odd[n]);
            }
        }
        memcpy(sums, state.tiles[c].row[m], 64);
        for (int n = 0; n < columns; n++) sums[n] = sums[n] + (even[n] + odd[n]);
        memset(state.tiles[c].row[m], 0, 64);
        memcpy(state.tiles[c].row[m], sums, size_t(columns) * 4);
    }
    _mm_setcsr(before);
}

// The three-byte VEX encodings of map 0F38.
inline void trap(int, siginfo_t*, void* context) {
    greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    const uint8_t* code = reinterpret_cast<const uint8_t*>(registers[REG_RIP]);
    static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    if (code[0] != 0xc4 || (code[1] & 31) != 2 || (code[2] & 0x84) != 0) refuse("illegal instruction", code);
    const int high_index = code[1] & 0x40 ? 0 : 8, high_base = code[1] & 0x20 ? 0 : 8, vvvv = ~(code[2] >> 3) & 15;
    const int prefix = code[2] & 3, opcode = code[3], mod = code[4] >> 6, reg = code[4] >> 3 & 7, rm = code[4] & 7;
    const uint8_t* end = code + 5;
    carried_out++;
    if (opcode == 0x5e || opcode == 0x5c) {
        if (mod != 3) refuse("illegal instruction", code);
        check_product(reg, rm, vvvv, code);
        if (opcode == 0x5e && prefix == 3) dot_i8<int8_t>(reg, rm, vvvv);
        else if (opcode == 0x5e && prefix == 2) dot_i8<uint8_t>(reg, rm, vvvv);
        else if (opcode == 0x5c && prefix == 2) dot_bf16(reg, rm, vvvv);
        else refuse("a product that is not emulated", code);
    } else if (opcode == 0x49 && mod == 3) {
        if (prefix == 3) {
            check_tile(reg, code);
            memset(&state.tiles[reg], 0, sizeof(Tile));
        } else if (prefix == 0 && code[4] == 0xc0) {
            state.configured = false;
        } else {
            refuse("illegal instruction", code);
        }
    } else if ((opcode == 0x49 && prefix == 0 && reg == 0) || opcode == 0x4b) {
        int64_t address = 0, stride = 0;
        int base = rm;
        const bool sib = rm == 4;
        if (sib) {
            const int index = (*end >> 3 & 7) + high_index;
            base = *end & 7;
            if (index != 4) stride = registers[order[index]] << (*end >> 6);
            end++;
        }
        const bool no_base = base == 5 && mod == 0;  // with a SIB byte none, else the instruction pointer
        if (!no_base) address = registers[order[base + high_base]];
        if (mod == 1) address += int8_t(*end++);
        if (mod == 2 || no_base) {
            int32_t offset;
            memcpy(&offset, end, 4);
            end += 4;
            address += offset;
        }
        if (no_base && !sib) address += reinterpret_cast<int64_t>(end);
        if (opcode == 0x49) {
            configure(reinterpret_cast<const uint8_t*>(address + stride), code);
        } else {
            if (!sib) refuse("a tile's rows need a SIB byte", code);
            check_tile(reg, code);
            Tile& tile = state.tiles[reg];
            if (prefix == 3) memset(&tile, 0, sizeof tile);
            for (int m = 0; m < state.rows[reg]; m++, address += stride) {
                uint8_t* memory = reinterpret_cast<uint8_t*>(address);
                if (prefix == 3) memcpy(tile.row[m], memory, state.row_bytes[reg]);
                else if (prefix == 2) memcpy(memory, tile.row[m], state.row_bytes[reg]);
                else refuse("illegal instruction", code);
            }
        }
    } else {
        refuse("illegal instruction", code);
    }
    registers[REG_RIP] = reinterpret_cast<greg_t>(end);
}

inline const bool installed = [] {
    syscall(SYS_arch_prctl, 0x1023, 18);
    struct sigaction action = {};
    action.sa_sigaction = trap;
    action.sa_flags = SA_SIGINFO;
    return sigaction(SIGILL, &action, nullptr) == 0;
}();

}  // namespace tile_emulator
