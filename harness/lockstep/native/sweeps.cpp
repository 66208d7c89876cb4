// Statistics of a shared pass, each in one sweep over memory. Plain C functions, called through ctypes.
//
// Values are read as they are stored (float32, float16, or bfloat16, which is the upper half of a float32), computed in
// float32 and summed in float64 every FLUSH steps. Sums run over fixed lanes, so neither the width of registers nor the number of threads changes a
// bit; the build forbids contraction and reassociation for the same reason.

#include "lanes.hpp"

namespace {

constexpr int FLUSH = 64;

// e^x for x <= 0, subnormal results included. Reduction and coefficients as in Cephes' expf (S. L. Moshier).
inline Floats exponential(Floats x) {
    x = pick(x < -160.0f, all(-160.0f), x);
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding and subtracting it rounds to the nearest integer
    const Floats powers = (x * 1.44269504088896341f + magic) - magic;
    x = x - powers * 0.693359375f;
    x = x - powers * -2.12194440e-4f;
    Floats p = all(1.9875691500e-4f);
    p = p * x + 1.3981999507e-3f;
    p = p * x + 8.3334519073e-3f;
    p = p * x + 4.1665795894e-2f;
    p = p * x + 1.6666665459e-1f;
    p = p * x + 5.0000001201e-1f;
    p = p * (x * x) + x + 1.0f;
    const Ints whole = to_ints(powers), half = whole >> 1;
    return p * as_floats((half + 127) << 23) * as_floats((whole - half + 127) << 23);
}

struct Sum {
    Floats lanes{};
    double total = 0;
    void flush() {
        for (int lane = 0; lane < LANES; lane++) total += lanes[lane];
        lanes = Floats{};
    }
};

template <class... Sums>
inline void flush(Sums&... sums) {
    (sums.flush(), ...);
}

template <class... Sums>
inline void flush_every(int64_t step, Sums&... sums) {
    if (step % FLUSH == FLUSH - 1) flush(sums...);
}

template <class Stored>
void sum_logits(const Stored* r, const Stored* v, int64_t width, double* out, int64_t stride, float* kept) {
    Floats most_r = all(-INFINITY), most_v = all(-INFINITY);
    for (int64_t at = 0; at < width; at += LANES) {
        most_r = larger(most_r, load(r + at, width - at, -INFINITY));
        most_v = larger(most_v, load(v + at, width - at, -INFINITY));
    }
    const float max_r = largest(most_r), max_v = largest(most_v);

    Ints top_r = all(1 << 25), top_v = top_r, index = count_lanes();
    Sum sum_r, sum_v, forward, backward, spread_r, spread_v, size;
    Floats most = all(0.0f);
    int64_t step = 0;
    for (int64_t at = 0; at < width; at += LANES, step++, index += all(LANES)) {
        const Floats x = load(r + at, width - at, -INFINITY), y = load(v + at, width - at, -INFINITY);
        const Floats zero = all(0.0f), a_r = x - max_r, a_v = y - max_v;
        const Floats e_r = exponential(a_r), e_v = exponential(a_v);
        const Floats difference = pick(x == y, zero, x - y), distance = absolute(difference);
        top_r = pick((x == max_r) & (index < top_r), index, top_r);
        top_v = pick((y == max_v) & (index < top_v), index, top_v);
        sum_r.lanes += e_r;
        sum_v.lanes += e_v;
        forward.lanes += pick(e_r == 0.0f, zero, e_r * difference);
        backward.lanes += pick(e_v == 0.0f, zero, e_v * difference);
        spread_r.lanes += pick(e_r == 0.0f, zero, e_r * a_r);
        spread_v.lanes += pick(e_v == 0.0f, zero, e_v * a_v);
        size.lanes += distance;
        most = larger(most, distance);
        store(kept + 2 * at, e_r);
        store(kept + 2 * at + LANES, e_v);
        flush_every(step, sum_r, sum_v, forward, backward, spread_r, spread_v, size);
    }
    flush(sum_r, sum_v, forward, backward, spread_r, spread_v, size);

    const float share_r = 1.0f / static_cast<float>(sum_r.total), share_v = 1.0f / static_cast<float>(sum_v.total);
    Sum variation;
    step = 0;
    for (int64_t at = 0; at < width; at += LANES, step++) {
        variation.lanes += absolute(load(kept + 2 * at) * share_r - load(kept + 2 * at + LANES) * share_v);
        flush_every(step, variation);
    }
    variation.flush();

    int32_t first_r = 1 << 25, first_v = 1 << 25;
    for (int lane = 0; lane < LANES; lane++) {
        first_r = top_r[lane] < first_r ? top_r[lane] : first_r;
        first_v = top_v[lane] < first_v ? top_v[lane] : first_v;
    }
    const double found[] = {max_r, max_v, double(first_r), double(first_v), sum_r.total, sum_v.total, forward.total,
                            backward.total, spread_r.total, spread_v.total, largest(most), size.total, variation.total};
    for (int column = 0; column < 13; column++) out[column * stride] = found[column];
}

template <class Stored>
void sum_errors(const Stored* r, const Stored* v, int64_t width, double* out, int64_t stride) {
    Sum lost, size_r, size_v, dot;
    Floats most = all(0.0f);
    int64_t step = 0;
    for (int64_t at = 0; at < width; at += LANES, step++) {
        const Floats x = load(r + at, width - at, 0.0f), y = load(v + at, width - at, 0.0f), d = y - x;
        lost.lanes += d * d;
        size_r.lanes += x * x;
        size_v.lanes += y * y;
        dot.lanes += x * y;
        most = larger(most, absolute(d));
        flush_every(step, lost, size_r, size_v, dot);
    }
    flush(lost, size_r, size_v, dot);
    const double found[] = {lost.total, size_r.total, size_v.total, dot.total, largest(most)};
    for (int column = 0; column < 5; column++) out[column * stride] = found[column];
}

// Columns [at, at + LANES) over all rows.
template <class Stored>
void sum_channels(const Stored* x, const uint8_t* valid, int64_t rows, int64_t row, int64_t count, float threshold,
                  double* out, int64_t stride) {
    double totals[4][LANES] = {};
    Floats most = all(0.0f), first = most, second = most, fourth = most, over = most;
    auto flush = [&totals](int which, Floats& sums) {
        for (int lane = 0; lane < LANES; lane++) totals[which][lane] += sums[lane];
        sums = all(0.0f);
    };
    for (int64_t number = 0; number < rows;) {
        for (int step = 0; step < FLUSH && number < rows; number++, x += row) {
            if (!valid[number]) continue;
            const Floats values = load(x, count, 0.0f), size = absolute(values), square = values * values;
            most = larger(most, size);
            first += values;
            second += square;
            fourth += square * square;
            over += as_floats(as_ints(all(1.0f)) & (size >= threshold));
            step++;
        }
        flush(0, first);
        flush(1, second);
        flush(2, fourth);
        flush(3, over);
    }
    const int64_t filled = count < LANES ? count : LANES;
    for (int64_t lane = 0; lane < filled; lane++) {
        out[lane] = most[lane];
        for (int which = 0; which < 4; which++) out[(which + 1) * stride + lane] = totals[which][lane];
    }
}

}  // namespace

#define EVERY_TYPE(name, Stored)                                                                                       \
    extern "C" void logit_sums_##name(const Stored* r, const Stored* v, int64_t rows, int64_t width, int64_t row_r,    \
                                      int64_t row_v, double* out, int64_t stride, float* kept) {                       \
        for (int64_t row = 0; row < rows; row++)                                                                       \
            sum_logits(r + row * row_r, v + row * row_v, width, out + row, stride, kept);                              \
    }                                                                                                                  \
    extern "C" void row_errors_##name(const Stored* r, const Stored* v, int64_t rows, int64_t width, int64_t row_r,    \
                                      int64_t row_v, double* out, int64_t stride) {                                    \
        for (int64_t row = 0; row < rows; row++)                                                                       \
            sum_errors(r + row * row_r, v + row * row_v, width, out + row, stride);                                    \
    }                                                                                                                  \
    extern "C" void channel_moments_##name(const Stored* x, const uint8_t* valid, int64_t rows, int64_t width,         \
                                           int64_t row, float threshold, double* out, int64_t stride) {                \
        for (int64_t at = 0; at < width; at += LANES)                                                                  \
            sum_channels(x + at, valid, rows, row, width - at, threshold, out + at, stride);                           \
    }

EVERY_TYPE(float32, float)
EVERY_TYPE(bfloat16, BFloat16)
EVERY_TYPE(float16, Float16)
