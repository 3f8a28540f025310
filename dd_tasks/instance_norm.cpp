// A norm of every channel of an image by itself, a ReLU and a mean of 2 x 2 pixels in one, as dd_tasks/instance_norm.py
// describes and calls it.
//
// Numbers are float32; images NHWC, of channels that are multiples of 16. What one thread goes through at once, some
// channels of one image, stays in the cache of its core. The order of every sum is the same for any number of threads.

#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <array>
#include <cstdint>

namespace instance_norm {

using Vec = at::vec::Vectorized<float>;
using Int = std::int64_t;

constexpr int WIDE = Vec::size();
constexpr int SPAN = 64, MANY = SPAN / WIDE;  // channels, and vectors of them, that are gone through at once, at most
using Vectors = std::array<Vec, MANY>;

struct Shape {
    Int images, height, width, channels;
    Int spans() const { return (channels + SPAN - 1) / SPAN; }
    Int parts() const { return images * spans(); }
    float share() const { return 1.f / (height * width); }  // of a pixel
};

// Some channels of one image.
struct Part {
    Shape is;
    Int image, first;
    int many;  // vectors

    Part(const Shape& is, Int part)
        : is(is), image(part / is.spans()), first(part % is.spans() * SPAN),
          many(std::min<Int>(SPAN, is.channels - first) / WIDE) {}

    template <class Number>
    Number* pixel(Number* images, Int y, Int x) const {
        return images + ((image * is.height + y) * is.width + x) * is.channels + first;
    }
    template <class Number>
    Number* mean(Number* halves, Int y, Int x) const {  // of 2 x 2 pixels
        return halves + ((image * (is.height / 2) + y) * (is.width / 2) + x) * is.channels + first;
    }
    template <class Number>
    Number* own(Number* numbers_NC) const {
        return numbers_NC + image * is.channels + first;
    }
};

// Of `SUMS` numbers a channel, which `add` adds for each of so many positions: every row by itself, then all rows.
template <int SUMS, class Add>
std::array<Vectors, SUMS> sums(const Part& part, Int height, Int width, const Add& add) {
    std::array<Vectors, SUMS> all;
    for (auto& sum : all) sum.fill(Vec(0.f));
    for (Int y = 0; y < height; ++y) {
        std::array<Vectors, SUMS> row;
        for (auto& sum : row) sum.fill(Vec(0.f));
        for (Int x = 0; x < width; ++x)
            for (int v = 0; v < part.many; ++v) add(y, x, v, row);
        for (int s = 0; s < SUMS; ++s)
            for (int v = 0; v < MANY; ++v) all[s][v] = all[s][v] + row[s][v];
    }
    return all;
}

// What a norm does to a pixel: times `scale`, plus `shift`.
struct Norm {
    Vectors mean, over_std, scale, shift;

    // By the images' own mean and std, and the weights.
    void settle(const Part& part, const float* weight_C, const float* bias_C) {
        for (int v = 0; v < part.many; ++v) {
            scale[v] = over_std[v] * Vec::loadu(weight_C + part.first + v * WIDE);
            shift[v] = Vec::loadu(bias_C + part.first + v * WIDE) - mean[v] * scale[v];
        }
    }
    Vec operator()(const float* pixel, int v) const { return at::vec::fmadd(Vec::loadu(pixel), scale[v], shift[v]); }
};

// made_NhwC from images_NHWC, and the means_NC and 1 / std_NC.
extern "C" bool norm_relu_pool(const float* images, const float* weight_C, const float* bias_C, float* made,
                               float* means, float* over_stds, Int n, Int height, Int width, Int channels,
                               Int threads, double eps) {
    const Shape is{n, height, width, channels};
    const Vec zero(0.f), share(is.share()), quarter(.25f);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (Int each = 0; each < is.parts(); ++each) {
        const Part part(is, each);
        Norm norm;
        const auto [total] = sums<1>(part, height, width, [&](Int y, Int x, int v, auto& row) {
            row[0][v] = row[0][v] + Vec::loadu(part.pixel(images, y, x) + v * WIDE);
        });
        for (int v = 0; v < part.many; ++v) norm.mean[v] = total[v] * share;
        const auto [squares] = sums<1>(part, height, width, [&](Int y, Int x, int v, auto& row) {
            const Vec apart = Vec::loadu(part.pixel(images, y, x) + v * WIDE) - norm.mean[v];
            row[0][v] = at::vec::fmadd(apart, apart, row[0][v]);
        });
        for (int v = 0; v < part.many; ++v) {
            norm.over_std[v] = (squares[v] * share + Vec(static_cast<float>(eps))).rsqrt();
            norm.mean[v].store(part.own(means) + v * WIDE);
            norm.over_std[v].store(part.own(over_stds) + v * WIDE);
        }
        norm.settle(part, weight_C, bias_C);
        for (Int y = 0; y < height / 2; ++y)
            for (Int x = 0; x < width / 2; ++x)
                for (int v = 0; v < part.many; ++v) {
                    const auto lit = [&](Int i, Int j) {
                        return maximum(norm(part.pixel(images, 2 * y + i, 2 * x + j) + v * WIDE, v), zero);
                    };
                    const Vec sum = (lit(0, 0) + lit(0, 1)) + (lit(1, 0) + lit(1, 1));
                    (sum * quarter).store(part.mean(made, y, x) + v * WIDE);
                }
    }
    return true;
}

// gradient_NHWC of the images, and every image's part in those of the weights, to_weight_NC and to_bias_NC, by the
// gradient_NhwC of what was made.
extern "C" bool norm_relu_pool_back(const float* images, const float* weight_C, const float* bias_C, const float* means,
                                    const float* over_stds, const float* slopes, float* made, float* to_weight,
                                    float* to_bias, Int n, Int height, Int width, Int channels, Int threads) {
    const Shape is{n, height, width, channels};
    const Vec zero(0.f), share(is.share()), quarter(.25f);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (Int each = 0; each < is.parts(); ++each) {
        const Part part(is, each);
        Norm norm;
        for (int v = 0; v < part.many; ++v) {
            norm.mean[v] = Vec::loadu(part.own(means) + v * WIDE);
            norm.over_std[v] = Vec::loadu(part.own(over_stds) + v * WIDE);
        }
        norm.settle(part, weight_C, bias_C);
        const auto [steep, apart] = sums<2>(part, height / 2, width / 2, [&](Int y, Int x, int v, auto& row) {
            const Vec slope = Vec::loadu(part.mean(slopes, y, x) + v * WIDE);
            Vec lit = zero, of_lit = zero;  // how many of the four are, and how far from the mean
            for (int k = 0; k < 4; ++k) {
                const float* pixel = part.pixel(images, 2 * y + k / 2, 2 * x + k % 2) + v * WIDE;
                const Vec on = norm(pixel, v) > zero;
                lit = lit + (on & Vec(1.f));
                of_lit = of_lit + (on & (Vec::loadu(pixel) - norm.mean[v]));
            }
            row[0][v] = at::vec::fmadd(slope, lit, row[0][v]);
            row[1][v] = at::vec::fmadd(slope, of_lit, row[1][v]);
        });
        Vectors factor, constant, slant;  // a pixel's gradient: factor * slope if it is lit, - constant - slant * pixel
        for (int v = 0; v < part.many; ++v) {
            const Vec by_bias = steep[v] * quarter, by_weight = apart[v] * quarter * norm.over_std[v];
            by_bias.store(part.own(to_bias) + v * WIDE);
            by_weight.store(part.own(to_weight) + v * WIDE);
            factor[v] = norm.scale[v] * quarter;
            slant[v] = norm.scale[v] * norm.over_std[v] * by_weight * share;
            constant[v] = norm.scale[v] * by_bias * share - slant[v] * norm.mean[v];
        }
        for (Int y = 0; y < height; ++y)
            for (Int x = 0; x < width; ++x) {
                const bool inside = y / 2 < height / 2 && x / 2 < width / 2;
                const float* pixel = part.pixel(images, y, x);
                for (int v = 0; v < part.many; ++v) {
                    Vec gradient = -at::vec::fmadd(Vec::loadu(pixel + v * WIDE), slant[v], constant[v]);
                    if (inside) {
                        const Vec on = norm(pixel + v * WIDE, v) > zero;
                        const Vec slope = on & Vec::loadu(part.mean(slopes, y / 2, x / 2) + v * WIDE);
                        gradient = at::vec::fmadd(slope, factor[v], gradient);
                    }
                    gradient.store(part.pixel(made, y, x) + v * WIDE);
                }
            }
    }
    return true;
}

}  // namespace instance_norm
