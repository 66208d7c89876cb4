// Blocks of values against grids: whether they lie on one, and how many distinct values they hold. Each block is read
// from memory once. Plain C functions, called through ctypes.

#include "lanes.hpp"

namespace {

constexpr int SEEN = 8 * LANES;  // Values after which a block that is off the grid is left.

inline Ints none() { return all(0); }

inline bool any(const Ints& mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)mask.parts[0], (__m512i)mask.parts[0]) != 0;
#else
    uint64_t bits[LANES / 2], found = 0;
    std::memcpy(bits, mask.parts, sizeof bits);
    for (uint64_t each : bits) found |= each;
    return found != 0;
#endif
}

inline Floats greater(const Floats& a, const Floats& b) {
    return in_parts<Floats>([&](int part) { return a.parts[part] > b.parts[part] ? a.parts[part] : b.parts[part]; });
}

inline float greatest(const Floats& values) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)values.parts[0]);
#else
    float most[LANES];
    store(most, values);
    for (int lane = 1; lane < LANES; lane++) most[0] = most[lane] > most[0] ? most[lane] : most[0];
    return most[0];
#endif
}

inline Floats divide(const Floats& values, float by) {
    return in_parts<Floats>([&](int part) { return values.parts[part] / by; });
}

inline Floats clamp(const Floats& values, float low, float high) {
    const Floats most = pick(values > high, all(high), values);
    return pick(most < low, all(low), most);
}

// The grids, by their numbers (see harness/numerics/native): each gives the nearest value in units of the scale.
struct Integers {
    float low, high;
    explicit Integers(const float* numbers, int64_t) : low(numbers[0]), high(numbers[1]) {}
    Floats nearest(const Floats& quotient) const {
        const float magic = 12582912.0f;  // 1.5 * 2^23: adding and subtracting it rounds to the nearest integer
        return clamp((quotient + magic) - magic, low, high);
    }
};

struct Minifloats {
    float largest, smallest, factor;
    explicit Minifloats(const float* numbers, int64_t) : largest(numbers[0]), smallest(numbers[1]), factor(numbers[2]) {}
    // A number whose last bit is worth the last bit of the value on the grid makes the processor round there.
    Floats nearest(const Floats& quotient) const {
        const Floats value = clamp(quotient, -largest, largest);
        const Floats power = greater(as_floats(as_ints(value) & 0x7f800000), all(smallest)) * factor;
        return (value + power) - power;
    }
};

struct Codebook {
    const float *values, *edges;
    int64_t count;
    explicit Codebook(const float* numbers, int64_t count) : values(numbers), edges(numbers + count), count(count) {}
    Floats nearest(const Floats& quotient) const {
        Floats value = all(values[0]);
        for (int64_t edge = 0; edge + 1 < count; edge++) value = pick(quotient > edges[edge], all(values[edge + 1]), value);
        return value;
    }
};

// The largest magnitude of a block or, for codes with a zero point, how far its ends lie apart, 0 included. -1 for NaN.
template <class Stored>
inline float measure_reach(const Stored* x, int64_t width, bool affine) {
    Floats high = all(0.0f), low = high;
    Ints odd = none();
    for (int64_t at = 0; at < width; at += LANES) {
        const Floats values = load(x + at, width - at, 0.0f);
        high = greater(high, affine ? values : absolute(values));
        if (affine) low = greater(low, all(0.0f) - values);
        odd = odd | (values != values);
    }
    return any(odd) ? -1.0f : greatest(high) + greatest(low);
}

template <class Stored, class Grid>
inline bool fits(const Stored* x, int64_t width, const Grid& grid, float scale, float relative, float absolutely) {
    const float divisor = scale > 0 ? scale : 1.0f;
    Ints bad = none();
    for (int64_t at = 0; at < width; at += LANES) {
        const Floats values = load(x + at, width - at, 0.0f);
        const Floats off = absolute(grid.nearest(divide(values, divisor)) * scale - values);
        const Floats left = off - absolute(values) * relative;
        bad = bad | (left > absolutely) | (left != left);
        if (at % SEEN == SEEN - LANES && any(bad)) return false;
    }
    return !any(bad);
}

template <class Grid, class Stored>
void check_all(const Stored* x, int64_t blocks, int64_t width, const Grid& grid, bool affine, const float* sizes,
               int64_t candidates, float relative, float absolutely, uint8_t* good) {
    for (int64_t block = 0; block < blocks; block++, x += width) {
        const float reach = measure_reach(x, width, affine);
        good[block] = reach == 0.0f;
        for (int64_t number = 0; reach > 0.0f && number < candidates && !good[block]; number++)
            good[block] = fits(x, width, grid, reach / sizes[number], relative, absolutely);
    }
}

template <class Stored>
void check(const Stored* x, int64_t blocks, int64_t width, int64_t kind, const float* numbers, int64_t count,
           bool affine, const float* sizes, int64_t candidates, float relative, float absolutely, uint8_t* good) {
    if (kind == 0)
        check_all(x, blocks, width, Integers(numbers, count), affine, sizes, candidates, relative, absolutely, good);
    else if (kind == 1)
        check_all(x, blocks, width, Minifloats(numbers, count), affine, sizes, candidates, relative, absolutely, good);
    else
        check_all(x, blocks, width, Codebook(numbers, count), affine, sizes, candidates, relative, absolutely, good);
}

}  // namespace

#define EVERY_TYPE(name, Stored)                                                                                       \
    extern "C" void lie_on_grid_##name(const Stored* x, int64_t blocks, int64_t width, int64_t kind,                   \
                                       const float* numbers, int64_t count, int64_t affine, const float* sizes,        \
                                       int64_t candidates, float relative, float absolutely, uint8_t* good) {          \
        check(x, blocks, width, kind, numbers, count, affine != 0, sizes, candidates, relative, absolutely, good);     \
    }

EVERY_TYPE(float32, float)
EVERY_TYPE(bfloat16, BFloat16)
EVERY_TYPE(float16, Float16)

// The largest number of distinct values in a block of 16-bit floats; 0 and -0 are one. seen [2^16]: numbers of the blocks
// in which each pattern of bits was found last, 0 at first.
extern "C" int64_t count_distinct(const uint16_t* x, int64_t blocks, int64_t width, int64_t step, uint32_t* seen) {
    int64_t most = 0;
    for (int64_t block = 0; block < blocks; block++, x += step) {
        const uint32_t number = static_cast<uint32_t>(block) + 1;
        int64_t fresh = 0;
        for (int64_t at = 0; at < width; at++) {
            const uint16_t bits = x[at] == 0x8000 ? 0 : x[at];
            fresh += seen[bits] != number;
            seen[bits] = number;
        }
        most = fresh > most ? fresh : most;
    }
    return most;
}
