// cuBLASLt, NVIDIA's library of matrix products, opened at run time where it is: the functions and numbers of its C interface
// (cublasLt.h of CUDA 12 and 13) that a product with bf16 weights takes. Knows nothing of the driver's runtime, so a library of
// a test's own can stand in for it.
//
// All its matrices lie column by column. Weights [n, k] by rows are [k, n] by columns, to be transposed; rows [rows, k] are
// [k, rows]; out [rows, n] is [n, rows]: out = weight^T x + residual.
#pragma once
#include <dlfcn.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <type_traits>

namespace genkit {

// out[m, n] = sum_k x[m, k] * weight[n, k] + residual[m, n].
struct LibraryProduct {
    const void* weight;     // bf16 [n, k]
    const uint16_t* x;      // bf16 [rows, k], row stride x_stride
    const float* residual;  // [rows, n], row stride out_stride, or null; may be out
    float* out;
    int64_t rows, n, k, x_stride, out_stride;
};

class Blas {
    struct Algorithm {
        uint64_t data[8];
    };
    struct Found {  // cublasLtMatmulHeuristicResult_t
        Algorithm algorithm;
        size_t workspace;
        int32_t state;
        float waves;
        int32_t reserved[4];
    };
    static_assert(sizeof(Found) == 96, "as in cublasLt.h");
    enum Number { float32 = 0, bfloat16 = 14, compute_float32 = 68, transposed = 1 };  // cudaDataType, cublasComputeType_t, cublasOperation_t
    enum Attribute { of_a = 3, workspace_most = 1, alignment_a = 5 };  // MATMUL_DESC_TRANSA, MATMUL_PREF_MAX_WORKSPACE_BYTES, .._MIN_ALIGNMENT_A_BYTES

public:
    static constexpr size_t workspace_bytes = 32 << 20;
    struct Plan {
        void *a, *b, *c;  // layouts; c is out's as well
        Algorithm algorithm;
        bool usable;
    };

    // Opens GENKIT_CUBLASLT, or what the system knows. False: words() says why.
    bool open(void* workspace) {
        space = workspace;
        void* library = nullptr;
        const char* given = getenv("GENKIT_CUBLASLT");
        for (const char* name : {given ? given : "libcublasLt.so.13", given ? given : "libcublasLt.so.12"})
            if (!library) library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
        if (!library) return fails("cannot be opened", 0);
        auto symbol = [&](auto& function, const char* name) {
            function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
            if (!function) snprintf(said, sizeof said, "has no %s", name);
            return function != nullptr;
        };
        if (!(symbol(create, "cublasLtCreate") && symbol(product_create, "cublasLtMatmulDescCreate") &&
              symbol(product_set, "cublasLtMatmulDescSetAttribute") && symbol(layout_create, "cublasLtMatrixLayoutCreate") &&
              symbol(wish_create, "cublasLtMatmulPreferenceCreate") && symbol(wish_set, "cublasLtMatmulPreferenceSetAttribute") &&
              symbol(look, "cublasLtMatmulAlgoGetHeuristic") && symbol(multiply, "cublasLtMatmul")))
            return false;
        if (int status = create(&handle)) return fails("cublasLtCreate", status);
        if (int status = product_create(&kind, compute_float32, float32)) return fails("cublasLtMatmulDescCreate", status);
        const int32_t yes = transposed;
        if (int status = product_set(kind, of_a, &yes, sizeof yes)) return fails("cublasLtMatmulDescSetAttribute", status);
        return true;
    }

    // What went wrong last, or "".
    const char* words() const { return said; }

    // The library's way to make such products, found once for each shape; null where it has none.
    Plan* plan(const LibraryProduct& p) {
        const std::lock_guard<std::mutex> lock(mutex);
        const void* places[] = {p.weight, p.x, p.residual ? p.residual : p.out, p.out};
        uint32_t alignment[4];
        for (int i = 0; i < 4; i++) alignment[i] = reinterpret_cast<uintptr_t>(places[i]) % 16 ? 4 : 16;
        auto [at, fresh] = plans.try_emplace({p.rows, p.n, p.k, p.x_stride, p.out_stride, alignment[0], alignment[1], alignment[2], alignment[3]});
        Plan& plan = at->second;
        if (fresh) plan.usable = make(plan, p, alignment);
        return plan.usable ? &plan : nullptr;
    }

    // Whether it was started; not tried again where it was not.
    bool run(Plan& plan, const LibraryProduct& p, void* stream) {
        const float one = 1, beta = p.residual ? 1.0f : 0.0f;
        const void* c = p.residual ? p.residual : p.out;
        const int status = multiply(handle, kind, &one, p.weight, plan.a, p.x, plan.b, &beta, c, plan.c, p.out, plan.c, &plan.algorithm, space,
                                    workspace_bytes, stream);
        return status == 0 || (plan.usable = fails("cublasLtMatmul", status));
    }

private:
    bool make(Plan& plan, const LibraryProduct& p, const uint32_t (&alignment)[4]) {
        void* wish = nullptr;
        const uint64_t most = workspace_bytes;
        if (int status = layout_create(&plan.a, bfloat16, uint64_t(p.k), uint64_t(p.n), p.k)) return fails("cublasLtMatrixLayoutCreate", status);
        if (int status = layout_create(&plan.b, bfloat16, uint64_t(p.k), uint64_t(p.rows), p.x_stride)) return fails("cublasLtMatrixLayoutCreate", status);
        if (int status = layout_create(&plan.c, float32, uint64_t(p.n), uint64_t(p.rows), p.out_stride)) return fails("cublasLtMatrixLayoutCreate", status);
        if (int status = wish_create(&wish)) return fails("cublasLtMatmulPreferenceCreate", status);
        if (int status = wish_set(wish, workspace_most, &most, sizeof most)) return fails("cublasLtMatmulPreferenceSetAttribute", status);
        for (int i = 0; i < 4; i++)
            if (int status = wish_set(wish, alignment_a + i, &alignment[i], sizeof alignment[i])) return fails("cublasLtMatmulPreferenceSetAttribute", status);
        Found found{};
        int count = 0;
        const int status = look(handle, kind, plan.a, plan.b, plan.c, plan.c, wish, 1, &found, &count);
        if (status || count < 1 || found.state) return fails(status ? "cublasLtMatmulAlgoGetHeuristic" : "it has no product of such a shape", status);
        plan.algorithm = found.algorithm;
        return true;
    }
    bool fails(const char* what, int status) {
        if (status) snprintf(said, sizeof said, "%s failed with status %d", what, status);
        else snprintf(said, sizeof said, "%s", what);
        return false;
    }

    int (*create)(void**) = nullptr;
    int (*product_create)(void**, int, int) = nullptr;
    int (*product_set)(void*, int, const void*, size_t) = nullptr;
    int (*layout_create)(void**, int, uint64_t, uint64_t, int64_t) = nullptr;
    int (*wish_create)(void**) = nullptr;
    int (*wish_set)(void*, int, const void*, size_t) = nullptr;
    int (*look)(void*, void*, void*, void*, void*, void*, void*, int, Found*, int*) = nullptr;
    int (*multiply)(void*, void*, const void*, const void*, void*, const void*, void*, const void*, const void*, void*, void*, void*,
                    const Algorithm*, void*, size_t, void*) = nullptr;
    void *handle = nullptr, *kind = nullptr, *space = nullptr;
    std::mutex mutex;
    std::map<std::array<int64_t, 9>, Plan> plans;
    char said[120] = "";
};

}  // namespace genkit
