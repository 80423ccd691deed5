// A library that has cuBLASLt's interface and nothing of it, for test_cuda_blas.py: what is multiplied follows from the layouts and
// transposes it was told, by its own reading of the documentation. FAKE_BLAS: "none" finds no way, "fails" finds one that fails.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

namespace {
struct Kind {
    int compute, scale;
    int32_t transposed[3] = {0, 0, 0};  // of a, b, c
};
struct Layout {
    int type;
    uint64_t rows, columns;
    int64_t leading;
};
struct Wish {
    uint64_t workspace = 0;
    uint32_t alignment[4] = {256, 256, 256, 256};  // as documented where nothing is said
};
struct Algorithm {
    uint64_t data[8];
};
struct Found {
    Algorithm algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};
constexpr int refused = 15, invalid = 7;
int handle, made = 0, looked = 0;
bool told(const char* what) { return std::getenv("FAKE_BLAS") && std::string(std::getenv("FAKE_BLAS")) == what; }

double element(const void* memory, const Layout& m, bool transposed, uint64_t row, uint64_t column) {
    const uint64_t at = transposed ? column + row * uint64_t(m.leading) : row + column * uint64_t(m.leading);
    float x;
    if (m.type == 0) return static_cast<const float*>(memory)[at];
    const uint32_t bits = uint32_t(static_cast<const uint16_t*>(memory)[at]) << 16;
    std::memcpy(&x, &bits, 4);
    return x;
}
bool aligned(const void* p, uint32_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }
}  // namespace

#pragma GCC visibility push(default)
extern "C" {
int fake_made() { return made; }
int fake_looked() { return looked; }
int cublasLtCreate(void** to) { return *to = &handle, 0; }
int cublasLtMatmulDescCreate(void** to, int compute, int scale) { return *to = new Kind{compute, scale}, 0; }
int cublasLtMatmulDescSetAttribute(void* kind, int attribute, const void* value, size_t bytes) {
    if (attribute < 3 || attribute > 5 || bytes != 4) return invalid;
    std::memcpy(&static_cast<Kind*>(kind)->transposed[attribute - 3], value, 4);
    return 0;
}
int cublasLtMatrixLayoutCreate(void** to, int type, uint64_t rows, uint64_t columns, int64_t leading) {
    if (leading < int64_t(rows)) return invalid;
    return *to = new Layout{type, rows, columns, leading}, 0;
}
int cublasLtMatmulPreferenceCreate(void** to) { return *to = new Wish, 0; }
int cublasLtMatmulPreferenceSetAttribute(void* wish, int attribute, const void* value, size_t bytes) {
    auto* w = static_cast<Wish*>(wish);
    if (attribute == 1 && bytes == 8) return std::memcpy(&w->workspace, value, 8), 0;
    if (attribute >= 5 && attribute <= 8 && bytes == 4) return std::memcpy(&w->alignment[attribute - 5], value, 4), 0;
    return invalid;
}
int cublasLtMatmulAlgoGetHeuristic(void*, void* kind, void* a, void* b, void* c, void* d, void* wish, int most, Found* found, int* count) {
    looked++;
    *count = 0;
    if (told("none")) return refused;
    const auto& k = *static_cast<Kind*>(kind);
    const auto &la = *static_cast<Layout*>(a), &lb = *static_cast<Layout*>(b), &lc = *static_cast<Layout*>(c), &ld = *static_cast<Layout*>(d);
    auto size = [](const Layout& m, bool turned, bool of_rows) { return turned == of_rows ? m.columns : m.rows; };
    const bool ta = k.transposed[0], tb = k.transposed[1];
    if (k.compute != 68 || k.scale != 0 || la.type != 14 || lb.type != 14 || lc.type != 0 || ld.type != 0) return refused;
    if (size(la, ta, false) != size(lb, tb, true) || size(la, ta, true) != ld.rows || size(lb, tb, false) != ld.columns) return invalid;
    if (lc.rows != ld.rows || lc.columns != ld.columns || most < 1) return invalid;
    std::memset(found, 0, sizeof *found);
    std::memcpy(found->algorithm.data, static_cast<Wish*>(wish)->alignment, 16);
    found->algorithm.data[7] = 77;
    found->workspace = static_cast<Wish*>(wish)->workspace;
    return *count = 1, 0;
}
int cublasLtMatmul(void*, void* kind, const void* alpha, const void* a, void* la, const void* b, void* lb, const void* beta, const void* c, void* lc,
                   void* d, void* ld, const Algorithm* algorithm, void* workspace, size_t workspace_bytes, void*) {
    if (told("fails")) return refused;
    const auto& k = *static_cast<Kind*>(kind);
    const auto &ma = *static_cast<Layout*>(la), &mb = *static_cast<Layout*>(lb), &mc = *static_cast<Layout*>(lc), &md = *static_cast<Layout*>(ld);
    uint32_t alignment[4];
    std::memcpy(alignment, algorithm->data, 16);
    if (algorithm->data[7] != 77 || !workspace || workspace_bytes != 32 << 20) return invalid;
    if (!aligned(a, alignment[0]) || !aligned(b, alignment[1]) || !aligned(c, alignment[2]) || !aligned(d, alignment[3])) return invalid;
    std::memset(workspace, 0xff, 64);  // it may write there
    const double one = *static_cast<const float*>(alpha), old = *static_cast<const float*>(beta);
    const uint64_t depth = k.transposed[0] ? ma.rows : ma.columns;
    for (uint64_t column = 0; column < md.columns; column++)
        for (uint64_t row = 0; row < md.rows; row++) {
            double sum = 0;
            for (uint64_t i = 0; i < depth; i++) sum += element(a, ma, k.transposed[0], row, i) * element(b, mb, k.transposed[1], i, column);
            if (old != 0) sum = one * sum + old * element(c, mc, false, row, column);
            static_cast<float*>(d)[row + column * uint64_t(md.leading)] = float(sum);
        }
    return made++, 0;
}
}
