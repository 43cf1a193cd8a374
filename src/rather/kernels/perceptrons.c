/* PPO's objective for two perceptrons, with its gradient, and a step of AdamW on one vector; see perceptrons.py.

   Everything is float. Rows are taken BLOCK at a time, so that what a layer makes of them stays in the nearest cache. In memory of its own a
   row of weights, of outputs or of gradients takes whole vectors, the rest of the last one being 0. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "exponential.h"

#pragma GCC visibility push(protected)

#ifdef __AVX512F__
enum { LANES = 16, VECTORS = 4, ROWS = 4 };
#else
enum { LANES = 8, VECTORS = 2, ROWS = 4 };
#endif
enum { BLOCK = 64, MOST = 16 }; /* rows at a time; layers of a net */
typedef float vector __attribute__((vector_size(4 * LANES)));
typedef vector loose __attribute__((aligned(4), may_alias));

static inline int64_t whole(int64_t numbers) { return (numbers + LANES - 1) / LANES * LANES; }

static inline __attribute__((always_inline)) void tile(const int rows, const int vectors, int64_t k, const float *a, int64_t a_row, int64_t a_column,
                                                       const float *b, int64_t b_row, float *c, int64_t c_row) {
    vector sum[ROWS][VECTORS];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < vectors; j++) sum[i][j] = *(loose *)(c + i * c_row + j * LANES);
    for (int64_t l = 0; l < k; l++) {
        vector w[VECTORS];
        for (int j = 0; j < vectors; j++) w[j] = *(const loose *)(b + l * b_row + j * LANES);
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < vectors; j++) sum[i][j] += a[i * a_row + l * a_column] * w[j];
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < vectors; j++) *(loose *)(c + i * c_row + j * LANES) = sum[i][j];
}

static inline __attribute__((always_inline)) void rows_of_tiles(const int vectors, int64_t n, int64_t k, const float *a, int64_t a_row, int64_t a_column,
                                                                const float *b, int64_t b_row, float *c, int64_t c_row) {
    int64_t i = 0;
    for (; i + ROWS <= n; i += ROWS) tile(ROWS, vectors, k, a + i * a_row, a_row, a_column, b, b_row, c + i * c_row, c_row);
    for (; i < n; i++) tile(1, vectors, k, a + i * a_row, a_row, a_column, b, b_row, c + i * c_row, c_row);
}

/* Adds a (n, k) times b (k, m) to c (n, m), m being whole vectors. */
static void add_product(int64_t n, int64_t m, int64_t k, const float *a, int64_t a_row, int64_t a_column, const float *b, int64_t b_row, float *c,
                        int64_t c_row) {
    for (int64_t j = 0; j < m; j += VECTORS * LANES) {
        switch (m - j >= VECTORS * LANES ? VECTORS : (m - j) / LANES) {
        case 1: rows_of_tiles(1, n, k, a, a_row, a_column, b + j, b_row, c + j, c_row); break;
        case 2: rows_of_tiles(2, n, k, a, a_row, a_column, b + j, b_row, c + j, c_row); break;
#ifdef __AVX512F__
        case 3: rows_of_tiles(3, n, k, a, a_row, a_column, b + j, b_row, c + j, c_row); break;
        default: rows_of_tiles(4, n, k, a, a_row, a_column, b + j, b_row, c + j, c_row);
#endif
        }
    }
}

/* A perceptron of `layers` layers from sizes[0] numbers to sizes[layers]: weights (I, O) and biases, the weights turned around (O, I), the
   gradient of both, what each layer was given, the last of them what came out, and room for what goes back. */
struct net {
    int64_t layers;
    const int64_t *sizes;
    float *weights[MOST], *turned[MOST], *gradients[MOST], *given[MOST + 1], *back;
};

/* Memory of so many numbers, all 0, which each thread keeps for the next call. */
static float *memory(int64_t numbers) {
    static _Thread_local float *kept;
    static _Thread_local int64_t there;
    if (there < numbers) free(kept), kept = aligned_alloc(64, whole(numbers) * sizeof(float)), there = numbers;
    return memset(kept, 0, numbers * sizeof(float));
}

/* The numbers that a net of such layers takes. */
static int64_t taken(int64_t layers, const int64_t *sizes) {
    int64_t found = BLOCK * whole(sizes[0]), widest = 0;
    for (int64_t l = 0; l < layers; l++) {
        found += 2 * (sizes[l] + 1) * whole(sizes[l + 1]) + sizes[l + 1] * whole(sizes[l]) + BLOCK * whole(sizes[l + 1]);
        widest = whole(sizes[l]) > widest ? whole(sizes[l]) : widest;
    }
    return found + BLOCK * widest;
}

/* A net in `memory` with the numbers that stand at `from`, of each layer the weights and then the biases. */
static struct net opened(int64_t layers, const int64_t *sizes, const float *from, float *memory) {
    struct net net = {.layers = layers, .sizes = sizes, .given = {memory}};
    memory += BLOCK * whole(sizes[0]);
    for (int64_t l = 0; l < layers; l++) {
        int64_t in = sizes[l], out = sizes[l + 1], wide = whole(out);
        net.weights[l] = memory, memory += (in + 1) * wide;
        net.gradients[l] = memory, memory += (in + 1) * wide;
        net.turned[l] = memory, memory += out * whole(in);
        net.given[l + 1] = memory, memory += BLOCK * wide;
        for (int64_t i = 0; i <= in; i++, from += out) {
            memcpy(net.weights[l] + i * wide, from, out * sizeof(float));
            for (int64_t o = 0; i < in && o < out; o++) net.turned[l][o * whole(in) + i] = from[o];
        }
    }
    net.back = memory;
    return net;
}

/* Writes its gradient as `opened` reads its numbers; returns where it ends. */
static float *written(const struct net *net, float *to) {
    for (int64_t l = 0; l < net->layers; l++)
        for (int64_t i = 0, out = net->sizes[l + 1]; i <= net->sizes[l]; i++, to += out)
            memcpy(to, net->gradients[l] + i * whole(out), out * sizeof(float));
    return to;
}

/* What comes out for the n rows that are given[0]: (n, whole vectors). */
static float *forward(struct net *net, int64_t n) {
    for (int64_t l = 0; l < net->layers; l++) {
        int64_t in = net->sizes[l], wide = whole(net->sizes[l + 1]);
        float *out = net->given[l + 1];
        for (int64_t r = 0; r < n; r++) memcpy(out + r * wide, net->weights[l] + in * wide, wide * sizeof(float));
        add_product(n, wide, in, net->given[l], whole(in), 1, net->weights[l], wide, out, wide);
        if (l + 1 < net->layers)
            for (int64_t i = 0; i < n * wide; i++) out[i] = 1 - 2 / (exponential(2 * out[i]) + 1); /* tanh */
    }
    return net->given[net->layers];
}

/* Adds to its gradient what derivatives by the outputs, which stand in given[layers], make of it. Overwrites what the layers were given. */
static void backward(struct net *net, int64_t n) {
    for (int64_t l = net->layers - 1; l >= 0; l--) {
        int64_t in = net->sizes[l], narrow = whole(in), wide = whole(net->sizes[l + 1]);
        float *of = net->given[l + 1], *given = net->given[l], *gradient = net->gradients[l];
        add_product(in, wide, n, given, 1, narrow, of, wide, gradient, wide);
        for (int64_t r = 0; r < n; r++)
            for (int64_t o = 0; o < wide; o++) gradient[in * wide + o] += of[r * wide + o];
        if (!l) return;
        memset(net->back, 0, n * narrow * sizeof(float));
        add_product(n, narrow, net->sizes[l + 1], of, wide, 1, net->turned[l], narrow, net->back, narrow);
        for (int64_t i = 0; i < n * narrow; i++) given[i] = net->back[i] * (1 - given[i] * given[i]);
    }
}

struct objective {
    float clip, high, dual, value_clip, value_weight, entropy_weight;
};

/* What is known of a step beside what was seen. */
struct known {
    const float *old, *advantages, *returns, *values;
};

/* The derivative of the loss by a row's log-probability, n being all rows; adds to `sums` the surrogate, the ratio and whether it is clipped. */
static float by_logprob(float logprob, float old, float advantage, const struct objective *s, int64_t n, double *sums) {
    float ratio = expf(logprob - old), plain = ratio * advantage;
    float held = (ratio < 1 - s->clip ? 1 - s->clip : ratio > 1 + s->high ? 1 + s->high : ratio) * advantage;
    float surrogate = plain < held ? plain : held;
    if (advantage < 0 && surrogate < s->dual * advantage) surrogate = s->dual * advantage;
    sums[0] -= surrogate, sums[3] += ratio, sums[4] += ratio - 1 > s->high || 1 - ratio > s->clip;
    return surrogate == plain ? plain / -n : 0;
}

/* Puts derivatives in the place of a row's logits (a,). */
static void choice(int64_t a, float *row, int64_t action, float old, float advantage, const struct objective *s, int64_t n, double *sums) {
    float most = row[0], total = 0, entropy = 0, p[a];
    for (int64_t i = 1; i < a; i++) most = row[i] > most ? row[i] : most;
    for (int64_t i = 0; i < a; i++) total += p[i] = expf(row[i] - most);
    float log_total = logf(total);
    for (int64_t i = 0; i < a; i++) {
        p[i] /= total, row[i] -= most + log_total;
        entropy -= p[i] * row[i];
    }
    float of = by_logprob(row[action], old, advantage, s, n, sums), of_entropy = s->entropy_weight / -n;
    for (int64_t i = 0; i < a; i++) row[i] = p[i] * -of + (i == action ? of : 0) - of_entropy * p[i] * (row[i] + entropy);
    sums[2] += entropy;
}

/* The same for means, log_std (a,) being the logarithms of the standard deviations, by which derivatives are added to `of_std`. */
static void gaussian(int64_t a, float *row, const float *action, const float *log_std, float old, float advantage, const struct objective *s, int64_t n,
                     float *of_std, double *sums) {
    float logprob = 0, entropy = 0, scaled[a];
    for (int64_t i = 0; i < a; i++) {
        scaled[i] = (action[i] - row[i]) * expf(-log_std[i]);
        logprob -= 0.5f * scaled[i] * scaled[i] + log_std[i] + 0.91893853f;
        entropy += log_std[i] + 1.41893853f;
    }
    float of = by_logprob(logprob, old, advantage, s, n, sums);
    for (int64_t i = 0; i < a; i++) {
        row[i] = of * scaled[i] * expf(-log_std[i]);
        of_std[i] += of * (scaled[i] * scaled[i] - 1) - s->entropy_weight / n;
    }
    sums[2] += entropy;
}

/* Puts the derivative in the place of a row's value. */
static void value(float *row, float back, float before, const struct objective *s, int64_t n, double *sums) {
    float error = *row - back, change = *row - before, worse = error;
    float held = before + (change < -s->value_clip ? -s->value_clip : change > s->value_clip ? s->value_clip : change) - back;
    int clipped = fabsf(change) > s->value_clip && fabsf(held) > fabsf(error);
    if (clipped) worse = held;
    sums[1] += 0.5 * worse * worse;
    *row = clipped ? 0 : error * s->value_weight / n;
}

/* The gradient at `parameter`, the numbers of the policy, those of the critic, and of Gaussian policies log_std, on the n `chosen` ones of the
   steps that are known. Actions are whole numbers (N,), or floats (N, A) of a Gaussian. `parts` are the means of the policy's loss, the
   value's, the entropy and the ratio, and the share of ratios that are clipped. */
void ppo_gradient(int64_t n, const int64_t *chosen, const float *seen, const void *actions, const struct known *known, int64_t is_gaussian,
                  int64_t policy_layers, const int64_t *policy_sizes, int64_t critic_layers, const int64_t *critic_sizes, const struct objective *s,
                  const float *parameter, float *gradient, double *parts) {
    int64_t numbers = 0, inputs = policy_sizes[0], a = policy_sizes[policy_layers];
    for (int64_t l = 0; l < policy_layers; l++) numbers += (policy_sizes[l] + 1) * policy_sizes[l + 1];
    int64_t of_policy = taken(policy_layers, policy_sizes);
    float *there = memory(of_policy + taken(critic_layers, critic_sizes));
    struct net policy = opened(policy_layers, policy_sizes, parameter, there);
    struct net critic = opened(critic_layers, critic_sizes, parameter + numbers, there + of_policy);
    for (int64_t l = 0; l < critic_layers; l++) numbers += (critic_sizes[l] + 1) * critic_sizes[l + 1];
    float of_std[a];
    double sums[5] = {0};
    memset(of_std, 0, sizeof of_std);
    for (int64_t first = 0; first < n; first += BLOCK) {
        int64_t rows = n - first < BLOCK ? n - first : BLOCK;
        const int64_t *which = chosen + first;
        for (int64_t r = 0; r < rows; r++) {
            memcpy(policy.given[0] + r * whole(inputs), seen + which[r] * inputs, inputs * sizeof(float));
            memcpy(critic.given[0] + r * whole(inputs), seen + which[r] * inputs, inputs * sizeof(float));
        }
        float *out = forward(&policy, rows);
        for (int64_t r = 0; r < rows; r++, out += whole(a)) {
            int64_t i = which[r];
            if (is_gaussian)
                gaussian(a, out, (const float *)actions + i * a, parameter + numbers, known->old[i], known->advantages[i], s, n, of_std, sums);
            else
                choice(a, out, ((const int64_t *)actions)[i], known->old[i], known->advantages[i], s, n, sums);
        }
        backward(&policy, rows);
        out = forward(&critic, rows);
        for (int64_t r = 0; r < rows; r++, out += LANES) value(out, known->returns[which[r]], known->values[which[r]], s, n, sums);
        backward(&critic, rows);
    }
    gradient = written(&critic, written(&policy, gradient));
    if (is_gaussian) memcpy(gradient, of_std, sizeof of_std);
    for (int i = 0; i < 5; i++) parts[i] = sums[i] / n;
}

struct step {
    float most, lr, beta1, beta2, eps, decay, bias1, bias2;
};

/* Scales a gradient (n,) down to a norm of `most` and takes a step of AdamW by it; nothing where the norm, which is returned, is not finite. */
double adamw(int64_t n, const struct step *s, float *parameter, const float *gradient, float *first, float *second) {
    double squares[8] = {0}, square = 0;
    int64_t whole_eights = n / 8 * 8;
    for (int64_t i = 0; i < whole_eights; i += 8)
        for (int j = 0; j < 8; j++) squares[j] += (double)gradient[i + j] * gradient[i + j];
    for (int64_t i = whole_eights; i < n; i++) square += (double)gradient[i] * gradient[i];
    for (int j = 0; j < 8; j++) square += squares[j];
    double norm = sqrt(square);
    if (!isfinite(norm)) return norm;
    float scale = norm + 1e-6 > s->most ? s->most / (norm + 1e-6) : 1, size = s->lr / s->bias1, root = sqrtf(s->bias2), kept = 1 - s->lr * s->decay;
    for (int64_t i = 0; i < n; i++) {
        float g = gradient[i] * scale;
        first[i] += (1 - s->beta1) * (g - first[i]);
        second[i] = s->beta2 * second[i] + (1 - s->beta2) * g * g;
        parameter[i] = parameter[i] * kept - size * first[i] / (sqrtf(second[i]) / root + s->eps);
    }
    return norm;
}
