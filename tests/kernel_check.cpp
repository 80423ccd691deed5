// Every slot a tier fills against the reference slot, on random inputs of awkward sizes. One program per tier, so that
// a tier for another architecture can run under an emulator: built and run by test_kernels_native.py with
// -DINSTALL_TIER=install_neon and the like. Exits 1 and names what differs.
#include "../cpp/cpu/reference.cpp"
#include "../cpp/cpu/table.h"

namespace genkit {
void INSTALL_TIER(Kernels& k);  // cuda_tier.cpp's is in no table
}
#ifdef EMULATED_TILES
#include "tile_emulator.h"
#endif

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <numeric>
#include <string>
#include <vector>

using namespace genkit;

#define QUOTED(x) #x
#define TEXT(x) QUOTED(x)

namespace {

const double eps = 0x1p-23;  // a float's relative spacing: twice the rounding error
Kernels plain, fast;
int failures = 0;

struct Random {
    int64_t drawn = 0;
    double uniform() { return double(random_bits(20, 11, drawn++)) * 0x1p-53; }
    float in(float low, float high) { return low + (high - low) * float(uniform()); }
    float normal() { return in(-1, 1) + in(-1, 1) + in(-1, 1); }
    int64_t below(int64_t n) { return int64_t(uniform() * double(n)); }
    std::vector<float> normals(int64_t n, float scale = 1) {
        std::vector<float> v(static_cast<size_t>(n));
        for (float& x : v) x = normal() * scale;
        return v;
    }
} rng;

void check(const std::string& what, const std::vector<float>& got, const std::vector<float>& want,
           const std::vector<double>& allowed) {
    for (size_t i = 0; i < want.size(); i++) {
        const bool same = got[i] == want[i] || (got[i] != got[i] && want[i] != want[i]);
        if (!same && !(fabs(double(got[i]) - double(want[i])) <= allowed[i])) {
            printf("%s: element %zu is %.9g, the reference %.9g, allowed %.3g\n", what.c_str(), i, double(got[i]),
                   double(want[i]), allowed[i]);
            failures++;
            return;
        }
    }
}

std::vector<double> relative(const std::vector<float>& want, double factor, double floor = 0) {
    std::vector<double> allowed;
    for (float w : want) allowed.push_back(factor * eps * fabs(double(w)) + floor);
    return allowed;
}

template <class T>
std::vector<T> narrowed(const std::vector<float>& x) {
    std::vector<T> out(x.size());
    for (size_t i = 0; i < x.size(); i++) narrow(x[i], out[i]);
    return out;
}

#include "kernel_check_rows.inl"
#include "kernel_check_products.inl"
#include "kernel_check_attention.inl"
#include "kernel_check_draws.inl"
#include "kernel_check_packed.inl"
#include "kernel_check_measure.inl"

}  // namespace

// Of all parts, or of those named.
int main(int count, char** names) {
    install_reference(plain);
    install_reference(fast);
    INSTALL_TIER(fast);
    auto part = [&](const char* name) {
        return count == 1 || std::any_of(names + 1, names + count, [&](const char* asked) { return strcmp(asked, name) == 0; });
    };
    if (part("measure")) check_philox(), check_measures();
    if (part("rows")) {
        check_convert();
        for (int64_t dim : {1, 2, 7, 15, 16, 17, 33, 64, 80, 257, 1000, 2304, 4100, 16400}) {
            for (int64_t rows : {1, 3}) check_rows(rows, dim);
        }
    }
    if (part("draws")) {
        check_many_draws(21, 5000);
        check_many_draws(600, 33);
        check_many_draws(1, 300001);
        for (int64_t capacity : {1, 12, 300, 2048, 4100})
            for (int64_t window : {0, 1, 3, 40}) check_penalties(5, capacity, std::max<int64_t>(capacity - 9, 0), window);
        for (int64_t dim : {1, 7, 16, 100, 1024, 1500, 4097, 9001}) {
            for (float spread : {0.1f, 1.0f, 4.0f}) check_draws(dim, spread);
        }
    }
    if (part("linear")) {
        for (DType dtype : {DType::f32, DType::f16, DType::bf16}) {
            for (int64_t rows : {1, 2, 3, 4, 5, 8, 33, 67}) {
                for (int64_t k : {1, 7, 33, 257, 1024, 1100}) {
                    check_linear(rows, 1 + rng.below(60), k, dtype, true);
                    check_linear(rows, 1 + rng.below(20), k, dtype, false);
                }
            }
        }
        check_tiles();
    }
    if (part("keys")) {
        for (DType dtype : {DType::f32, DType::f16, DType::bf16, DType::i8}) {
            for (int64_t dim : {64, 128, 256, 80, 36, 20, 320}) check_rope_kv_write(5, 5, 3, dim, dtype, false, dim != 80);
            check_rope_kv_write(3, 2, 1, 64, dtype, true, true);
        }
    }
    if (part("attention")) {
        for (DType dtype : {DType::f32, DType::f16, DType::bf16, DType::i8}) {
            for (int64_t dim : {2, 16, 20, 33, 64, 80, 96, 128}) {
                check_attention(1, 2, 7, dim, 130, 0, false, dtype);
                check_attention(19, 1, 3, dim, 200, 0, true, dtype);
                check_attention(11, 2, 1, dim, 200, 70, false, dtype);
                check_attention(9, 1, 18, dim, 65, 1, false, dtype);
                check_attention(9, 2, 5, dim, 150, 0, true, dtype, 2, dim % 32 == 0);
            }
            for (int64_t dim : {64, 192, 256}) check_attention(97, 2, 4, dim, 700, 0, false, dtype, 3, true);
            check_attention(70, 1, 5, 32, 700, 300, true, dtype);
            for (int64_t dim : {96, 128}) check_attention(86, 2, 3, dim, 330, dim == 96 ? 0 : 90, false, dtype);
            check_attention(3, 1, 3, 16, 2100, 0, false, dtype);
            check_attention(3, 1, 1, 16, 2100, 1100, false, dtype);
            check_attention(3, 1, 3, 32, 2100, 0, false, dtype, 0, true);
            if (dtype != DType::f16)  // which ends at 65,504
                for (float size : {0x1p-90f, 0x1p100f}) check_attention(3, 1, 3, 32, 100, 0, false, dtype, 0, false, size);
        }
        check_attention(66, 1, 1, 32, 17000, 0, false, DType::bf16);  // more than merge_chunks of a device's partials
    }
    if (part("few")) {  // rows of wide heads, whose way depends on a device's shared memory
        for (DType dtype : {DType::f16, DType::bf16, DType::i8}) {
            for (int64_t dim : {96, 128, 192, 256}) check_attention(3, 1, 7, dim, 700, dim == 128 ? 300 : 0, dim == 192, dtype);
        }
    }
    if (part("packed")) check_integer_weights();
    if (part("experts")) {
        for (int64_t rows : {1, 3, 40}) check_experts(rows, 8, 2, 4, 37), check_experts(rows, 60, 7, 1, 130), check_experts(rows, 1, 1, 1, 16);
        check_experts(2, 1024, 33, 16, 5);
        check_experts(700, 300, 3, 1, 3), check_experts(700, 8, 2, 4, 3);
    }
    if (failures) printf("%d comparisons failed\n", failures);
    return failures ? 1 : 0;
}
