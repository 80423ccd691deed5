// Mixture of experts (Shazeer et al. 2017, arXiv:1701.06538): which experts a row goes to, and the rows of each expert side
// by side. A part of kernels.h, with its rules.
//
// A row that goes to k experts makes k assignments. They are laid out in places: a region for each expert that has any, in
// ascending order, its rows in ascending order, from a multiple of 16 on (code_tile_rows). So the kernels of products run
// over a region as over any rows, whatever they want 16 rows of together. All of it is found at replay: sizes are bounds,
// and what lies beyond the last region is skipped.
#pragma once
#include <cstdint>

namespace genkit {

constexpr int64_t experts_most = 1024;
constexpr int64_t region_rows = 16;

// softmax: of all logits. softmax_chosen: of the k largest. sigmoid: of each logit; chosen by score + correction.
enum class Scoring : int32_t { softmax, softmax_chosen, sigmoid };

// The k experts of the highest scores, best first, equals by ascending id; a NaN is passed over while there is anything
// else. With groups > 1, sigmoid only, those in the groups_kept groups whose two best add up to most (DeepSeek-V3, arXiv:2412.19437).
// weights: the scores, without the correction; divided by their sum when normalized; times scale. Unit: one row.
struct RouteArgs {
    const float* logits;      // [rows, experts]
    const float* correction;  // [experts] or null; sigmoid only
    int32_t* ids;             // [rows, k]
    float* weights;           // [rows, k]
    int64_t experts, k, groups, groups_kept;
    Scoring scoring;
    bool normalize;
    float scale;
};

struct Region {
    int32_t expert, first, rows;  // places [first, first + rows); without an expert rows is 0
};

// Lays out the assignments. Unit: all.
struct GroupRowsArgs {
    const int32_t* ids;   // [rows, k], in [0, experts)
    Region* regions;      // [region_count], those in use first
    int32_t* tiles;       // [places / 16] the region that 16 places belong to, -1 beyond the last
    int32_t* sources;     // [places] the row that lies there, -1 for none
    int32_t* place_of;    // [rows, k]
    int64_t rows, k, experts, region_count, places;
};
// Most regions, and places, that `rows` rows can need.
static constexpr int64_t most_regions(int64_t assignments, int64_t experts) { return assignments < experts ? assignments : experts; }
static constexpr int64_t most_places(int64_t assignments, int64_t experts) {
    return (assignments + (region_rows - 1) * most_regions(assignments, experts)) / region_rows * region_rows;
}

// out[p, :] = x[sources[p], :]; where nothing lies, out is left as it is. Unit: one place.
struct GatherRowsArgs {
    const float* x;          // row stride x_stride
    const int32_t* sources;  // [places]
    float* out;              // [places, dim]
    int64_t dim, x_stride;
};

// out[r, :] = residual[r, :] + sum_j weights[r, j] * y[place_of[r, j], :], j ascending. Unit: one row.
struct CombineArgs {
    const float* y;           // [places, dim]
    const float* weights;     // [rows, k]
    const int32_t* place_of;  // [rows, k], or null: row r's only one is r
    const float* residual;    // [rows, dim] or null
    float* out;               // [rows, dim]
    int64_t dim, k;
};

}  // namespace genkit
