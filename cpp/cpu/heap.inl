// A heap of pairs (value, id) with the last in order at its root: what top_k keeps the best in. Needs draw.inl. Included inside
// a tier's anonymous namespace.

// Puts a pair into place i of a heap with the last in order at its root.
void heap_place(float* values, int32_t* ids, int64_t i, int64_t count, float value, int32_t id) {
    for (int64_t child; (child = 2 * i + 1) < count; i = child) {
        if (child + 1 < count && before(values[child], ids[child], values[child + 1], ids[child + 1])) child++;
        if (!before(value, id, values[child], ids[child])) break;
        values[i] = values[child];
        ids[i] = ids[child];
    }
    values[i] = value;
    ids[i] = id;
}

void heap_build(float* values, int32_t* ids, int64_t count) {
    for (int64_t i = count / 2; i-- > 0;) heap_place(values, ids, i, count, values[i], ids[i]);
}

// A heap into descending order.
void heap_sort(float* values, int32_t* ids, int64_t count) {
    for (int64_t last = count - 1; last > 0; last--) {
        const float value = values[last];
        const int32_t id = ids[last];
        values[last] = values[0];
        ids[last] = ids[0];
        heap_place(values, ids, 0, last, value, id);
    }
}
