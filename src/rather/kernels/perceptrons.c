/* PPO's objective for two perceptrons, with its gradient, and a step of AdamW on one vector; see perceptrons.py.

   Everything is float. Rows are taken BLOCK at a time, so that what a layer makes of them stays in the nearest cache. In memory of its own a
   row of weights, of outputs or of gradients takes whole vectors, the rest of the last one being 0. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "exponential.h"

#pragma GCC visibility push(protected) /* calls of each other are not of what others name so */

#if defined __AVX512F__ && !defined NARROW /* tests define NARROW */
#define WIDE
enum { LANES = 16, VECTORS = 4, ROWS = 4 };
#else
enum { LANES = 8, VECTORS = 2, ROWS = 4 };
#endif
enum { BLOCK = 64, MAX_LAYERS = 16 }; /* rows at a time; layers of a net */
typedef float vector __attribute__((vector_size(4 * LANES)));
typedef vector loose __attribute__((aligned(4), may_alias));

static inline int64_t padded(int64_t numbers) { return (numbers + LANES - 1) / LANES * LANES; }

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
#ifdef WIDE
        case 2: rows_of_tiles(2, n, k, a, a_row, a_column, b + j, b_row, c + j, c_row); break;
        case 3: rows_of_tiles(3, n, k, a, a_row, a_column, b + j, b_row, c + j, c_row); break;
#endif
        default: rows_of_tiles(VECTORS, n, k, a, a_row, a_column, b + j, b_row, c + j, c_row);
        }
    }
}

/* A perceptron of `layers` layers from sizes[0] numbers to sizes[layers]: weights (I, O) and biases, the weights transposed (O, I), the
   gradients of both, the activations that each layer was given, the last of them what came out, and room for what goes back. */
struct net {
    int64_t layers;
    const int64_t *sizes;
    float *weights[MAX_LAYERS], *transposed[MAX_LAYERS], *gradients[MAX_LAYERS], *activations[MAX_LAYERS + 1], *back;
};

/* Memory of so many numbers, all 0; NULL where there is none. */
static float *memory(int64_t numbers) {
    int64_t bytes = (numbers * sizeof(float) + 63) / 64 * 64; /* C11 wants whole alignments */
    float *found = aligned_alloc(64, bytes);
    return found ? memset(found, 0, bytes) : NULL;
}

/* The numbers that a net of such layers takes. */
static int64_t net_size(int64_t layers, const int64_t *sizes) {
    int64_t found = BLOCK * padded(sizes[0]), widest = 0;
    for (int64_t l = 0; l < layers; l++) {
        found += 2 * (sizes[l] + 1) * padded(sizes[l + 1]) + sizes[l + 1] * padded(sizes[l]) + BLOCK * padded(sizes[l + 1]);
        widest = padded(sizes[l]) > widest ? padded(sizes[l]) : widest;
    }
    return found + BLOCK * widest;
}

/* A net in `memory` with the numbers that stand at `from`, of each layer the weights and then the biases. */
static struct net load_net(int64_t layers, const int64_t *sizes, const float *from, float *memory) {
    struct net net = {.layers = layers, .sizes = sizes, .activations = {memory}};
    memory += BLOCK * padded(sizes[0]);
    for (int64_t l = 0; l < layers; l++) {
        int64_t in = sizes[l], out = sizes[l + 1], wide = padded(out);
        net.weights[l] = memory, memory += (in + 1) * wide;
        net.gradients[l] = memory, memory += (in + 1) * wide;
        net.transposed[l] = memory, memory += out * padded(in);
        net.activations[l + 1] = memory, memory += BLOCK * wide;
        for (int64_t i = 0; i <= in; i++, from += out) {
            memcpy(net.weights[l] + i * wide, from, out * sizeof(float));
            for (int64_t o = 0; i < in && o < out; o++) net.transposed[l][o * padded(in) + i] = from[o];
        }
    }
    net.back = memory;
    return net;
}

/* Writes its gradient as `load_net` reads its numbers; returns where it ends. */
static float *store_gradient(const struct net *net, float *to) {
    for (int64_t l = 0; l < net->layers; l++)
        for (int64_t i = 0, out = net->sizes[l + 1]; i <= net->sizes[l]; i++, to += out)
            memcpy(to, net->gradients[l] + i * padded(out), out * sizeof(float));
    return to;
}

/* What comes out for the n rows in activations[0]: (n, whole vectors). */
static float *forward(struct net *net, int64_t n) {
    for (int64_t l = 0; l < net->layers; l++) {
        int64_t in = net->sizes[l], wide = padded(net->sizes[l + 1]);
        float *out = net->activations[l + 1];
        for (int64_t r = 0; r < n; r++) memcpy(out + r * wide, net->weights[l] + in * wide, wide * sizeof(float));
        add_product(n, wide, in, net->activations[l], padded(in), 1, net->weights[l], wide, out, wide);
        if (l + 1 < net->layers)
            for (int64_t i = 0; i < n * wide; i++) out[i] = 1 - 2 / (exponential(2 * out[i]) + 1); /* tanh */
    }
    return net->activations[net->layers];
}

/* Adds to its gradient what derivatives by the outputs, which stand in activations[layers], make of it. Overwrites the activations. */
static void backward(struct net *net, int64_t n) {
    for (int64_t l = net->layers - 1; l >= 0; l--) {
        int64_t in = net->sizes[l], narrow = padded(in), wide = padded(net->sizes[l + 1]);
        float *of = net->activations[l + 1], *activations = net->activations[l], *gradient = net->gradients[l];
        add_product(in, wide, n, activations, 1, narrow, of, wide, gradient, wide);
        for (int64_t r = 0; r < n; r++)
            for (int64_t o = 0; o < wide; o++) gradient[in * wide + o] += of[r * wide + o];
        if (!l) return;
        memset(net->back, 0, n * narrow * sizeof(float));
        add_product(n, narrow, net->sizes[l + 1], of, wide, 1, net->transposed[l], narrow, net->back, narrow);
        for (int64_t i = 0; i < n * narrow; i++) activations[i] = net->back[i] * (1 - activations[i] * activations[i]);
    }
}

struct objective {
    float clip, high, dual, value_clip, value_weight, entropy_weight;
};

/* What is known of a step beside what was seen. */
struct known {
    const float *old, *advantages, *returns, *values;
};

/* Sums over rows; in this order their means are what `ppo_gradient` says. */
struct sums {
    double policy_loss, value_loss, entropy, ratio, clipped;
};

/* PPO-Clip (Schulman et al. 2017, equation 7; `losses.ppo_clip_loss`): with r = exp(log pi - log pi_old), the surrogate min(r A, clip(r) A),
   and where A < 0 at least dual A. Returns the derivative of the loss, which is minus its mean over n rows, by this row's log pi: -r A / n
   where the surrogate is r A, or 0. */
static float by_logprob(float logprob, float old, float advantage, const struct objective *s, int64_t n, struct sums *sums) {
    float ratio = expf(logprob - old), plain = ratio * advantage;
    float held = (ratio < 1 - s->clip ? 1 - s->clip : ratio > 1 + s->high ? 1 + s->high : ratio) * advantage;
    float surrogate = plain < held ? plain : held;
    if (advantage < 0 && surrogate < s->dual * advantage) surrogate = s->dual * advantage;
    sums->policy_loss -= surrogate, sums->ratio += ratio, sums->clipped += ratio - 1 > s->high || 1 - ratio > s->clip;
    return surrogate == plain ? plain / -n : 0;
}

/* Puts derivatives in the place of a row's logits (a,). */
static void choice(int64_t a, float *row, int64_t action, float old, float advantage, const struct objective *s, int64_t n, struct sums *sums) {
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
    sums->entropy += entropy;
}

#define HALF_LOG_2PI 0.91893853f

/* The same for means, log_std (a,) being the logarithms of the standard deviations, by which derivatives are added to `of_std`. */
static void gaussian(int64_t a, float *row, const float *action, const float *log_std, float old, float advantage, const struct objective *s, int64_t n,
                     float *of_std, struct sums *sums) {
    float logprob = 0, entropy = 0, scaled[a];
    for (int64_t i = 0; i < a; i++) {
        scaled[i] = (action[i] - row[i]) * expf(-log_std[i]);
        logprob -= 0.5f * scaled[i] * scaled[i] + log_std[i] + HALF_LOG_2PI;
        entropy += log_std[i] + HALF_LOG_2PI + 0.5f;
    }
    float of = by_logprob(logprob, old, advantage, s, n, sums);
    for (int64_t i = 0; i < a; i++) {
        row[i] = of * scaled[i] * expf(-log_std[i]);
        of_std[i] += of * (scaled[i] * scaled[i] - 1) - s->entropy_weight / n;
    }
    sums->entropy += entropy;
}

/* Puts the derivative of half the squared error, the worse one of two with `value_clip`, in the place of a row's value (`losses.value_loss`). */
static void value(float *row, float back, float before, const struct objective *s, int64_t n, struct sums *sums) {
    float error = *row - back, change = *row - before, worse = error;
    float held = before + (change < -s->value_clip ? -s->value_clip : change > s->value_clip ? s->value_clip : change) - back;
    int clipped = fabsf(change) > s->value_clip && fabsf(held) > fabsf(error);
    if (clipped) worse = held;
    sums->value_loss += 0.5 * worse * worse;
    *row = clipped ? 0 : error * s->value_weight / n;
}

/* The gradient at `parameter`, the numbers of the policy, those of the critic, and of Gaussian policies log_std, on the n `chosen` ones of the
   steps that are known. Actions are whole numbers (N,), or floats (N, A) of a Gaussian. `parts` are the means of the policy's loss, the
   value's, the entropy and the ratio, and the share of ratios that are clipped. Returns 0 where there is no memory. */
int ppo_gradient(int64_t n, const int64_t *chosen, const float *seen, const void *actions, const struct known *known, int64_t is_gaussian,
                  int64_t policy_layers, const int64_t *policy_sizes, int64_t critic_layers, const int64_t *critic_sizes, const struct objective *s,
                  const float *parameter, float *gradient, double *parts) {
    int64_t numbers = 0, inputs = policy_sizes[0], a = policy_sizes[policy_layers];
    for (int64_t l = 0; l < policy_layers; l++) numbers += (policy_sizes[l] + 1) * policy_sizes[l + 1];
    int64_t of_policy = net_size(policy_layers, policy_sizes);
    float *there = memory(of_policy + net_size(critic_layers, critic_sizes));
    if (!there) return 0;
    struct net policy = load_net(policy_layers, policy_sizes, parameter, there);
    struct net critic = load_net(critic_layers, critic_sizes, parameter + numbers, there + of_policy);
    for (int64_t l = 0; l < critic_layers; l++) numbers += (critic_sizes[l] + 1) * critic_sizes[l + 1];
    float of_std[a];
    struct sums sums = {0};
    memset(of_std, 0, sizeof of_std);
    for (int64_t first = 0; first < n; first += BLOCK) {
        int64_t rows = n - first < BLOCK ? n - first : BLOCK;
        const int64_t *which = chosen + first;
        for (int64_t r = 0; r < rows; r++) {
            memcpy(policy.activations[0] + r * padded(inputs), seen + which[r] * inputs, inputs * sizeof(float));
            memcpy(critic.activations[0] + r * padded(inputs), seen + which[r] * inputs, inputs * sizeof(float));
        }
        float *out = forward(&policy, rows);
        for (int64_t r = 0; r < rows; r++, out += padded(a)) {
            int64_t i = which[r];
            if (is_gaussian)
                gaussian(a, out, (const float *)actions + i * a, parameter + numbers, known->old[i], known->advantages[i], s, n, of_std, &sums);
            else
                choice(a, out, ((const int64_t *)actions)[i], known->old[i], known->advantages[i], s, n, &sums);
        }
        backward(&policy, rows);
        out = forward(&critic, rows);
        for (int64_t r = 0; r < rows; r++, out += LANES) /* a critic has one output */
            value(out, known->returns[which[r]], known->values[which[r]], s, n, &sums);
        backward(&critic, rows);
    }
    gradient = store_gradient(&critic, store_gradient(&policy, gradient));
    if (is_gaussian) memcpy(gradient, of_std, sizeof of_std);
    free(there);
    const double *each = &sums.policy_loss;
    for (int i = 0; i < 5; i++) parts[i] = each[i] / n;
    return 1;
}

struct step {
    float most, lr, beta1, beta2, eps, decay, bias1, bias2;
};

/* Scales a gradient (n,) down to a norm of `most` and takes a step of AdamW by it; nothing where the norm, which is returned, is not finite. */
double adamw(int64_t n, const struct step *s, float *parameter, const float *gradient, float *first, float *second) {
    double squares[8] = {0}, square = 0;
    int64_t eights = n / 8 * 8;
    for (int64_t i = 0; i < eights; i += 8)
        for (int j = 0; j < 8; j++) squares[j] += (double)gradient[i + j] * gradient[i + j];
    for (int64_t i = eights; i < n; i++) square += (double)gradient[i] * gradient[i];
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
