// Convolutions by tiles of 4 x 4 pixels, as dd_tasks/winograd.py describes and calls them.
//
// Numbers are float32; images NHWC, of sides that are multiples of 4 and channels of 16. A block of tiles is
// transformed, multiplied and transformed back by one thread, within the cache of its core. The order of every sum is
// the same for any number of threads.

#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>

namespace {

using Vec = at::vec::Vectorized<float>;
using Int = std::int64_t;

constexpr Int POINTS = 36;  // of a transformed tile
constexpr Int TO_ALL = 7;   // the point that becomes a part of all pixels of a tile, as it is
constexpr Int WIDE = Vec::size();
constexpr int ROWS = 6, COLUMNS = WIDE == 16 ? 4 : 2;  // of vectors: a block of sums that the registers hold
constexpr Int OF_A_BLOCK = 5 << 15;                    // numbers of transformed tiles that a core's cache holds
constexpr Int OF_A_GROUP = 64, GROUPS = 16;            // tiles of a sum by one thread, at least; such sums, at most
constexpr Int APART = 16;  // numbers between the points, which would otherwise compete for the same lines of the cache

struct Shape {
    Int images, height, width, inner, outer;
    Int across() const { return width / 4; }
    Int each() const { return height / 4 * across(); }
    Int tiles() const { return images * each(); }
};

inline Vec times(float factor, Vec x, Vec more) { return at::vec::fmadd(Vec(factor), x, more); }

// The transforms along one direction (Lavin & Gray 2016, section 4.3).

inline void in(const Vec* d, Vec* made) {  // of the input: 6 from 6
    const Vec evens = times(-4, d[2], d[4]), odds = times(-4, d[1], d[3]);
    const Vec even = d[4] - d[2], odd = (d[3] - d[1]) * Vec(2);
    made[0] = times(4, d[0], times(-5, d[2], d[4]));
    made[1] = evens + odds;
    made[2] = evens - odds;
    made[3] = even + odd;
    made[4] = even - odd;
    made[5] = times(4, d[1], times(-5, d[3], d[5]));
}

inline void out(const Vec* m, Vec* made) {  // of the products: 4 from 6
    const Vec one = m[1] + m[2], other = m[1] - m[2], two = m[3] + m[4], four = m[3] - m[4];
    made[0] = m[0] + one + two;
    made[1] = times(2, four, other);
    made[2] = times(4, two, one);
    made[3] = times(8, four, other) + m[5];
}

inline void back(const Vec* y, Vec* made) {  // of the output's gradient: 6 from 4
    const Vec evens = y[0] + y[2], odds = y[1] + y[3];
    const Vec even = times(4, y[2], y[0]), odd = times(8, y[3], y[1] * Vec(2));
    made[0] = y[0];
    made[1] = evens + odds;
    made[2] = evens - odds;
    made[3] = even + odd;
    made[4] = even - odd;
    made[5] = y[3];
}

inline void grown(const Vec* g, Vec* made) {  // of the weights: 6 from 3
    const Vec outer = (g[0] + g[2]) * Vec(1 / 6.f), all = g[1] * Vec(1 / 6.f);
    const Vec other = times(1 / 24.f, g[0], g[2] * Vec(1 / 6.f)), half = all * Vec(.5f);
    made[0] = g[0] * Vec(.25f);
    made[1] = -(outer + all);
    made[2] = all - outer;
    made[3] = other + half;
    made[4] = other - half;
    made[5] = g[2];
}

inline void shrunk(const Vec* u, Vec* made) {  // of the weights' gradient: 3 from 6
    const Vec one = (u[1] + u[2]) * Vec(1 / 6.f), two = (u[3] + u[4]) * Vec(1 / 6.f);
    made[0] = times(.25f, u[0] + two, -one);
    made[1] = times(1 / 12.f, u[3] - u[4], (u[2] - u[1]) * Vec(1 / 6.f));
    made[2] = two - one + u[5];
}

// By rows, then by columns: FROM x FROM vectors at `from` become TO x TO at `to`.
template <int FROM, int TO, void (*ALONG)(const Vec*, Vec*), class From, class To>
inline void transform(From from, To to) {
    Vec lines[TO][FROM], given[FROM], made[TO];
    for (int j = 0; j < FROM; ++j) {
        for (int i = 0; i < FROM; ++i) given[i] = Vec::loadu(from(i, j));
        ALONG(given, made);
        for (int i = 0; i < TO; ++i) lines[i][j] = made[i];
    }
    for (int i = 0; i < TO; ++i) {
        ALONG(lines[i], made);
        for (int j = 0; j < TO; ++j) made[j].store(to(i, j));
    }
}

// The matrix product c = a @ b, or c += a @ b, of R rows of numbers and C columns of vectors.
struct Product {
    const float* a;
    Int a_row, a_step;
    const float* b;
    Int b_step;
    float* c;
    Int c_row, depth;
    bool add;

    template <int R, int C>
    void block(Int row, Int column) const {
        Vec sums[R][C];
        const float *left = a + row * a_row, *right = b + column;
        float* made = c + row * c_row + column;
        for (int i = 0; i < R; ++i)
            for (int j = 0; j < C; ++j) sums[i][j] = add ? Vec::loadu(made + i * c_row + j * WIDE) : Vec(0.f);
        for (Int k = 0; k < depth; ++k) {
            Vec of_b[C];
            for (int j = 0; j < C; ++j) of_b[j] = Vec::loadu(right + k * b_step + j * WIDE);
            for (int i = 0; i < R; ++i) {
                const Vec of_a(left[i * a_row + k * a_step]);
                for (int j = 0; j < C; ++j) sums[i][j] = at::vec::fmadd(of_a, of_b[j], sums[i][j]);
            }
        }
        for (int i = 0; i < R; ++i)
            for (int j = 0; j < C; ++j) sums[i][j].store(made + i * c_row + j * WIDE);
    }

    template <int R, int C>
    void left_over(Int row, Int rows, Int column) const {
        if constexpr (R > 0) {
            if (rows == R) block<R, C>(row, column);
            else left_over<R - 1, C>(row, rows, column);
        }
    }

    template <int C>
    Int stripes(Int rows, Int columns, Int column) const {
        for (; column + C * WIDE <= columns; column += C * WIDE) {
            Int row = 0;
            for (; row + ROWS <= rows; row += ROWS) block<ROWS, C>(row, column);
            left_over<ROWS - 1, C>(row, rows - row, column);
        }
        return column;
    }

    void of(Int rows, Int columns) const {
        Int column = stripes<COLUMNS>(rows, columns, 0);
        if constexpr (COLUMNS > 2) column = stripes<2>(rows, columns, column);
        stripes<1>(rows, columns, column);
    }
};

// The 6 x 6 pixels under a tile, with zeros about the image, transformed: `point` numbers from one point to the next.
void input_tile(const float* images, const Shape& is, Int tile, const float* zeros, float* made, Int point) {
    const Int top = tile % is.each() / is.across() * 4 - 1, left = tile % is.across() * 4 - 1;
    const float* image = images + tile / is.each() * is.height * is.width * is.inner;
    const float* pixels[6][6];
    for (Int i = 0; i < 6; ++i)
        for (Int j = 0; j < 6; ++j) {
            const Int y = top + i, x = left + j;
            const bool inside = 0 <= y && y < is.height && 0 <= x && x < is.width;
            pixels[i][j] = inside ? image + (y * is.width + x) * is.inner : zeros;
        }
    for (Int c = 0; c < is.inner; c += WIDE)
        transform<6, 6, in>([&](int i, int j) { return pixels[i][j] + c; },
                            [&](int i, int j) { return made + (i * 6 + j) * point + c; });
}

template <class Number>
Number* output_at(Number* images, const Shape& is, Int tile) {
    const Int row = tile / is.each() * is.height + tile % is.each() / is.across() * 4;
    return images + (row * is.width + tile % is.across() * 4) * is.outer;
}

// Those of a convolution, O33C; or, where `turned`, of the one that takes its output's gradient to its input's, with
// channels in and out changed over, and by half a turn.
struct Weights {
    const float* numbers;
    Int inner, outer;
    bool turned;

    // 36CO of WIDE channels in: `apart` numbers from one point to the next.
    void grow(float* made, Int apart, Int first) const {
        for (Int o = 0; o < outer && !turned; o += WIDE) {
            float across[9][WIDE][WIDE];
            for (Int p = 0; p < 9; ++p)
                at::vec::transpose_mxn<float, WIDE, WIDE>(
                    numbers + (o * 9 + p) * inner + first, 9 * inner, across[p][0], WIDE);
            for (Int c = 0; c < WIDE; ++c)
                transform<3, 6, grown>(
                    [&](int i, int j) { return across[i * 3 + j][c]; },
                    [&](int i, int j) { return made + (i * 6 + j) * apart + (first + c) * outer + o; });
        }
        for (Int c = first; c < first + WIDE && turned; ++c)
            for (Int o = 0; o < outer; o += WIDE)
                transform<3, 6, grown>([&](int i, int j) { return numbers + (c * 9 + 8 - i * 3 - j) * outer + o; },
                                       [&](int i, int j) { return made + (i * 6 + j) * apart + c * outer + o; });
    }
};

Int divided(Int one, Int other) { return (one + other - 1) / other; }

struct Free {
    void operator()(float* numbers) const { std::free(numbers); }
};
using Numbers = std::unique_ptr<float[], Free>;

// Room for so many numbers, not set to anything, which a thread keeps for its next call; from a line of the cache on.
// Null where memory is short.
template <int WHICH>
float* room(Int numbers) {
    thread_local Numbers kept;
    thread_local Int most = 0;
    if (numbers > most) {
        kept.reset(static_cast<float*>(std::aligned_alloc(64, divided(numbers * 4, 64) * 64)));
        most = kept ? numbers : 0;
    }
    return kept.get();
}

}  // namespace

// grown_36CO from weights as they are (kind 1) or turned (kind 2).
extern "C" bool grow(const float* weights, float* made, Int inner, Int outer, Int kind, Int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (Int c = 0; c < inner; c += WIDE) Weights{weights, inner, outer, kind == 2}.grow(made, inner * outer, c);
    return true;
}

// made_NHWO from images_NHWC and the weights: grown before (kind 0); or not, and then by every thread for itself, which
// takes less time than reading what another one wrote. With bias_O, where there is one. Like `weigh`, false where
// memory is short.
extern "C" bool convolve(const float* images, const float* weights, const float* bias, float* made, Int n, Int height,
                         Int width, Int inner, Int outer, Int kind, Int threads) {
    const Shape is{n, height, width, inner, outer};
    if (!is.tiles()) return true;
    const Int most = std::max<Int>(OF_A_BLOCK / (POINTS * (inner + outer)), ROWS);
    const Int blocks = divided(divided(is.tiles(), most), threads) * threads, size = divided(is.tiles(), blocks);
    const Int point_in = size * inner + APART, point_out = size * outer + APART;
    std::atomic<bool> enough{true};
#pragma omp parallel num_threads(threads)
    {
        float *taken = room<0>(POINTS * point_in), *products = room<1>(POINTS * point_out), *border = room<2>(inner);
        const Int apart = inner * outer + (kind ? APART : 0);
        float* own = kind ? room<3>(POINTS * apart) : nullptr;
        if (taken && products && border && (own || !kind)) std::fill_n(border, inner, 0.f);
        else enough = false;
        for (Int c = 0; c < inner && own; c += WIDE) Weights{weights, inner, outer, kind == 2}.grow(own, apart, c);
        const float* grown = own ? own : weights;
#pragma omp barrier
#pragma omp for schedule(static)
        for (Int block = 0; block < blocks * enough; ++block) {
            const Int first = block * size, tiles = std::min(size, is.tiles() - first);
            for (Int t = 0; t < tiles; ++t) input_tile(images, is, first + t, border, taken + t * inner, point_in);
            for (Int t = 0; t < tiles && bias; ++t) std::copy_n(bias, outer, products + TO_ALL * point_out + t * outer);
            for (Int p = 0; p < POINTS && tiles > 0; ++p)
                Product{taken + p * point_in, inner, 1, grown + p * apart, outer,
                        products + p * point_out, outer, inner, bias && p == TO_ALL}.of(tiles, outer);
            for (Int t = 0; t < tiles; ++t) {
                float* corner = output_at(made, is, first + t);
                for (Int o = 0; o < outer; o += WIDE)
                    transform<6, 4, out>(
                        [&](int i, int j) { return products + (i * 6 + j) * point_out + t * outer + o; },
                        [&](int i, int j) { return corner + (i * width + j) * outer + o; });
            }
        }
    }
    return enough;
}

// made_O33C, the gradient of the weights, from images_NHWC and the output's gradient_NHWO: the sum of sums over groups
// of tiles, each by one thread. There are as many groups for any number of threads.
extern "C" bool weigh(const float* images, const float* gradient, float* made, Int n, Int height, Int width, Int inner,
                      Int outer, Int threads) {
    const Shape is{n, height, width, inner, outer};
    const Int groups = std::clamp<Int>(is.tiles() / OF_A_GROUP, 2, GROUPS), each = divided(is.tiles(), groups);
    const Int size = std::min(each, std::max<Int>(OF_A_BLOCK / (POINTS * (inner + outer)), ROWS));
    const Int point_in = size * inner + APART, point_out = size * outer + APART, numbers = outer * inner;
    float* const found = room<4>(groups * 9 * numbers);
    std::atomic<bool> enough{found != nullptr};
#pragma omp parallel num_threads(threads)
    {
        float *taken = room<0>(POINTS * point_in), *slopes = room<1>(POINTS * point_out), *border = room<2>(inner);
        float* sums = room<3>(POINTS * numbers);
        if (taken && slopes && border && sums) std::fill_n(border, inner, 0.f);
        else enough = false;
#pragma omp barrier
#pragma omp for schedule(static)
        for (Int group = 0; group < groups * enough; ++group) {
            const Int end = std::min((group + 1) * each, is.tiles());
            if (group * each >= end) std::fill_n(sums, POINTS * numbers, 0.f);
            for (Int first = group * each; first < end; first += size) {
                const Int tiles = std::min(size, end - first);
                for (Int t = 0; t < tiles; ++t) {
                    input_tile(images, is, first + t, border, taken + t * inner, point_in);
                    const float* corner = output_at(gradient, is, first + t);
                    for (Int o = 0; o < outer; o += WIDE)
                        transform<4, 6, back>(
                            [&](int i, int j) { return corner + (i * width + j) * outer + o; },
                            [&](int i, int j) { return slopes + (i * 6 + j) * point_out + t * outer + o; });
                }
                for (Int p = 0; p < POINTS; ++p)
                    Product{slopes + p * point_out, 1, outer, taken + p * point_in, inner,
                            sums + p * numbers, inner, tiles, first > group * each}.of(outer, inner);
            }
            float* theirs = found + group * 9 * numbers;
            for (Int x = 0; x < numbers; x += WIDE)
                transform<6, 3, shrunk>([&](int i, int j) { return sums + (i * 6 + j) * numbers + x; },
                                        [&](int i, int j) { return theirs + (i * 3 + j) * numbers + x; });
        }
#pragma omp for schedule(static)
        for (Int row = 0; row < 9 * outer * enough; ++row) {
            const float* theirs = found + row % 9 * numbers + row / 9 * inner;
            for (Int c = 0; c < inner; c += WIDE) {
                Vec sum = Vec::loadu(theirs + c);
                for (Int group = 1; group < groups; ++group) sum = sum + Vec::loadu(theirs + group * 9 * numbers + c);
                sum.store(made + row * inner + c);
            }
        }
    }
    return enough;
}
