// Sixteen values at a time, in registers of the processor's width.
//
// Values are read as they are stored (float32, float16, or bfloat16, which is the upper half of a float32) and computed
// in float32.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

namespace {

constexpr int LANES = 16;

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif
constexpr int PARTS = LANES / WIDTH;

typedef float FloatPart __attribute__((vector_size(WIDTH * 4)));
typedef int32_t IntPart __attribute__((vector_size(WIDTH * 4)));
typedef uint16_t HalfPart __attribute__((vector_size(WIDTH * 2)));

// LANES values in registers of the processor's width: compilers take wider vectors apart, one value at a time.
template <class Part>
struct Lanes {
    Part parts[PARTS];
    auto operator[](int64_t lane) const { return parts[lane / WIDTH][lane % WIDTH]; }
};

using Floats = Lanes<FloatPart>;
using Ints = Lanes<IntPart>;

template <class Result, class Work>
inline Result in_parts(Work work) {
    Result result;
    for (int part = 0; part < PARTS; part++) result.parts[part] = work(part);
    return result;
}

inline Floats all(float value) {
    return in_parts<Floats>([=](int) { return FloatPart{} + value; });
}

inline Ints all(int32_t value) {
    return in_parts<Ints>([=](int) { return IntPart{} + value; });
}

#define OPERATOR(sign, Left, Result)                                                                                   \
    inline Result operator sign(const Left& a, const Left& b) {                                                        \
        return in_parts<Result>([&](int part) { return a.parts[part] sign b.parts[part]; });                           \
    }                                                                                                                  \
    template <class Single>                                                                                            \
    inline Result operator sign(const Left& a, Single b) {                                                             \
        return in_parts<Result>([&](int part) { return a.parts[part] sign b; });                                       \
    }

OPERATOR(+, Floats, Floats)
OPERATOR(-, Floats, Floats)
OPERATOR(*, Floats, Floats)
OPERATOR(<, Floats, Ints)
OPERATOR(>, Floats, Ints)
OPERATOR(>=, Floats, Ints)
OPERATOR(==, Floats, Ints)
OPERATOR(!=, Floats, Ints)
OPERATOR(+, Ints, Ints)
OPERATOR(-, Ints, Ints)
OPERATOR(&, Ints, Ints)
OPERATOR(|, Ints, Ints)
OPERATOR(<, Ints, Ints)
OPERATOR(>=, Ints, Ints)
OPERATOR(<<, Ints, Ints)
OPERATOR(>>, Ints, Ints)

template <class Part>
inline void operator+=(Lanes<Part>& a, const Lanes<Part>& b) {
    a = a + b;
}

inline Floats as_floats(const Ints& bits) {
    return in_parts<Floats>([&](int part) { return (FloatPart)bits.parts[part]; });
}

inline Ints as_ints(const Floats& values) {
    return in_parts<Ints>([&](int part) { return (IntPart)values.parts[part]; });
}

inline Ints to_ints(const Floats& values) {
    return in_parts<Ints>([&](int part) { return __builtin_convertvector(values.parts[part], IntPart); });
}

template <class Part>
inline Lanes<Part> pick(const Ints& mask, const Lanes<Part>& those, const Lanes<Part>& others) {
    return in_parts<Lanes<Part>>([&](int part) { return mask.parts[part] ? those.parts[part] : others.parts[part]; });
}

inline Floats load(const float* from) {
    return in_parts<Floats>([=](int part) {
        FloatPart values;
        std::memcpy(&values, from + part * WIDTH, sizeof values);
        return values;
    });
}

inline void store(float* to, const Floats& values) {
    for (int part = 0; part < PARTS; part++) std::memcpy(to + part * WIDTH, &values.parts[part], sizeof(FloatPart));
}

struct BFloat16 {
    uint16_t bits;
};

struct Float16 {
    uint16_t bits;
};

inline Ints load_bits(const void* from) {
    return in_parts<Ints>([=](int part) {
        HalfPart halves;
        std::memcpy(&halves, static_cast<const HalfPart*>(from) + part, sizeof halves);
        return __builtin_convertvector(halves, IntPart);
    });
}

inline Floats load(const BFloat16* from) { return as_floats(load_bits(from) << 16); }

inline Floats load(const Float16* from) {
#if defined(__AVX512F__)
    return {{(FloatPart)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))}};
#elif defined(__F16C__)
    return in_parts<Floats>([=](int part) {
        return (FloatPart)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from) + part));
    });
#else
    // Exponents differ by 112; a subnormal number is what its bits add to the smallest normal one.
    const Ints bits = load_bits(from), sign = (bits & 0x8000) << 16, size = (bits & 0x7fff) << 13;
    const Ints smallest = all(113 << 23), normal = size + (112 << 23), special = size | 0x7f800000;
    const Ints subnormal = as_ints(as_floats(size + smallest) - as_floats(smallest));
    return as_floats(pick(size < (1 << 23), subnormal, pick(size >= (31 << 23), special, normal)) | sign);
#endif
}

inline Ints count_lanes() {
    Ints index;
    for (int lane = 0; lane < LANES; lane++) index.parts[lane / WIDTH][lane % WIDTH] = lane;
    return index;
}

// The lanes from `from` on of which `count` exist; the others are `filling`.
template <class Stored>
inline Floats load(const Stored* from, int64_t count, float filling) {
    if (count >= LANES) return load(from);
    Stored stored[LANES] = {};
    std::memcpy(stored, from, count * sizeof(Stored));
    return pick(count_lanes() < static_cast<int32_t>(count), load(stored), all(filling));
}

inline Floats absolute(const Floats& values) { return as_floats(as_ints(values) & 0x7fffffff); }

// As torch's amax: once NaN, always NaN.
inline Floats larger(const Floats& most, const Floats& values) {
    return pick((values > most) | (values != values), values, most);
}

inline float largest(const Floats& values) {
    float most = values[0];
    for (int lane = 1; lane < LANES; lane++)
        if (values[lane] > most || values[lane] != values[lane]) most = values[lane];
    return most;
}

}  // namespace
