// The vocabulary of functions.inl on one float a thread (cpp/cpu/vec_avx512.h): the same arithmetic, so the same bits.
using vec = float;

INLINE vec zero() { return 0.0f; }
INLINE vec set1(float x) { return x; }
INLINE vec fma(vec a, vec b, vec c) { return gk::fma(a, b, c); }
INLINE vec min(vec a, vec b) { return a < b ? a : b; }  // b where one is a NaN, as vector instructions have it
INLINE vec max(vec a, vec b) { return a > b ? a : b; }
INLINE vec abs(vec x) { return from_bits(to_bits(x) & 0x7fffffffu); }
INLINE vec round(vec x) { return gk::round_even(x); }
INLINE vec power_of_two(int32_t n) { return from_bits(uint32_t(n + 127) << 23); }
INLINE vec times_power(vec x, vec n) { return x * power_of_two(int32_t(n)); }
INLINE vec scale_by_power(vec x, vec n) {  // in two steps, so that results may be denormal or infinite
    const int32_t all = n == n ? int32_t(n) : 0, half = all >> 1;
    return x * power_of_two(half) * power_of_two(all - half);
}
INLINE bool less(vec a, vec b) { return a < b; }
INLINE vec select(bool m, vec yes, vec no) { return m ? yes : no; }
