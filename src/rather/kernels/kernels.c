/* What a processor computes while it decodes, and between the products of training; see kernels.py.

   Compiled for one type of number, BFLOAT16 or float; attention moreover for one WIDTH of a head and one number of query heads that share a
   key head, GROUP. Everything is computed in float and rounded where PyTorch rounds: both give the same numbers up to the order of sums. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "exponential.h"
#if defined BFLOAT16 && defined __AMX_BF16__
#define TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif

#pragma GCC visibility push(protected) /* calls of each other are not of what others name so: the C library has a `step` */

#if defined __AVX512F__ || (defined __AVX2__ && defined __FMA__)
#include <immintrin.h>
#endif
#ifdef BFLOAT16
typedef uint16_t real;
static inline float wide(real x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}
static inline real narrow(float x) { /* to the nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &x, sizeof x);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
#else
typedef float real;
static inline float wide(real x) { return x; }
static inline real narrow(float x) { return x; }
#endif
static inline float rounded(float x) { return wide(narrow(x)); }

/* Quantized weights of `outputs`, and of those `below`. `numbers` of COLUMNS outputs and two inputs lie side by side, INPUTS inputs after each
   other: in 8 bits with a sign; or their last 4 bits, the second HALF of them in the high halves of bytes, and after those the more bits that
   there are in 5 and 6, the first eighth or quarter of the numbers in the lowest ones of a byte. Of `scales` and `minima`, halves of a float,
   those of COLUMNS outputs lie side by side, one for INPUTS inputs, with 6 bits for half of them. A weight is its number times its scale, plus
   its minimum; without minima half of the numbers are negative. */
enum { COLUMNS = 48, INPUTS = 32, HALF = INPUTS * COLUMNS / 2 };
struct quantized {
    const uint8_t *numbers;
    const uint16_t *scales, *minima;
    int64_t bits, outputs;
    const struct quantized *below;
};

/* How many scales an output has for INPUTS inputs, the bytes of INPUTS inputs of COLUMNS outputs, and their least number. */
static inline int spans(const struct quantized *w) { return w->bits == 6 ? 2 : 1; }
static inline int64_t block_bytes(const struct quantized *w) { return HALF / 4 * w->bits; }
static inline int least(const struct quantized *w) { return w->minima ? 0 : -(1 << (w->bits - 1)); }

static inline float half(uint16_t x) { /* a finite one */
    uint32_t bits = (uint32_t)(x & 0x7fff) << 13, sign = (uint32_t)(x >> 15) << 31;
    float y;
    memcpy(&y, &bits, sizeof y);
    y *= 0x1p112f;
    memcpy(&bits, &y, sizeof y);
    bits |= sign;
    memcpy(&y, &bits, sizeof y);
    return y;
}

/* The numbers in less than 8 bits of INPUTS inputs of COLUMNS outputs, in 8 bits. */
static inline __attribute__((always_inline)) void unpack(const int bits, const int first, const uint8_t *from, int8_t *restrict to) {
    const int more = bits - 4, fields = more ? 8 / more : 2, held = 2 * HALF / fields;
#pragma GCC unroll 8
    for (int f = 0; f < fields; f++)
        for (int i = 0; i < held; i++) {
            int low = f < fields / 2 ? from[f * held + i] & 15 : from[f * held - HALF + i] >> 4;
            int high = more ? from[HALF + i] >> f * more & ((1 << more) - 1) : 0;
            to[f * held + i] = (low | high << 4) + first;
        }
}

/* The numbers of INPUTS inputs of COLUMNS outputs in 8 bits, `from` if they are. */
static inline const int8_t *in_8_bits(const struct quantized *w, const uint8_t *from, int8_t *to) {
    if (w->bits == 8) return (const int8_t *)from;
    if (w->bits == 4) unpack(4, least(w), from, to);
    if (w->bits == 5) unpack(5, least(w), from, to);
    if (w->bits == 6) unpack(6, least(w), from, to);
    return to;
}

/* The weights without this layout, transposed: `out` (inputs, m). */
void widen(int64_t m, int64_t inputs, const struct quantized *w, real *out) {
    for (; w; out += w->outputs, w = w->below)
#pragma omp parallel for if (w->outputs * inputs > 16384)
        for (int64_t first = 0; first < w->outputs; first += COLUMNS)
            for (int64_t start = 0; start < inputs; start += INPUTS) {
                int64_t columns = w->outputs - first < COLUMNS ? w->outputs - first : COLUMNS;
                int64_t block = (first / COLUMNS * inputs + start) / INPUTS;
                int8_t room[2 * HALF];
                const int8_t *from = in_8_bits(w, w->numbers + block * block_bytes(w), room);
                for (int64_t span = 0; span < spans(w); span++) {
                    int64_t at = (block * spans(w) + span) * COLUMNS;
                    float scale[COLUMNS], minimum[COLUMNS] = {0};
                    for (int c = 0; c < COLUMNS; c++) scale[c] = half(w->scales[at + c]);
                    for (int c = 0; c < COLUMNS && w->minima; c++) minimum[c] = half(w->minima[at + c]);
                    for (int64_t k = 0; k < INPUTS / spans(w); k += 2, from += 2 * COLUMNS) {
                        real *even = out + (start + span * INPUTS / 2 + k) * m + first, *odd = even + m;
                        for (int64_t c = 0; c < columns; c++) {
                            even[c] = narrow(scale[c] * from[2 * c] + minimum[c]);
                            odd[c] = narrow(scale[c] * from[2 * c + 1] + minimum[c]);
                        }
                    }
                }
            }
}

#if !defined BFLOAT16 || defined __AVX512BF16__
#define PRODUCT
enum { PER_WORD = 4 / sizeof(real) };
#ifdef __AVX512F__
enum { LANES = 16, VECTORS = 3, ROWS = 8 };
#else
enum { LANES = 8, VECTORS = 3, ROWS = 4 };
#endif
typedef float vector __attribute__((vector_size(4 * LANES)));
typedef vector loose __attribute__((aligned(4), may_alias)); /* one that lies anywhere in memory */

/* sum + x * w, a word of x and a vector of words. */
static inline vector add_product(vector sum, const uint32_t *x, const uint32_t *w) {
#ifdef BFLOAT16
    return (vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(*x), (__m512bh)_mm512_loadu_si512(w));
#else
    float one;
    memcpy(&one, x, sizeof one);
    return sum + one * *(const loose *)w;
#endif
}

/* The sums (n, COLUMNS) of `columns` outputs, plus what is `added`, to `out`. */
static void finish(int64_t n, int64_t columns, const float *sums, const real *added, int64_t added_stride, real *out, int64_t out_stride) {
    for (int64_t i = 0; i < n; i++, sums += COLUMNS, out += out_stride)
        for (int64_t j = 0; j < columns; j++) out[j] = narrow(sums[j] + (added ? wide(added[i * added_stride + j]) : 0));
}

#ifdef TILES
#define WRITTEN __asm__ volatile("" ::: "memory") /* compilers don't know what tiles read and write */
enum { TILE = 16 }; /* rows of x, words of a row, and outputs */

/* Whether Linux lets this process use tiles. */
int tiles(void) {
    static int granted = -1;
    if (granted < 0) granted = !syscall(SYS_arch_prctl, 0x1023, 18); /* ARCH_REQ_XCOMP_PERM, XTILEDATA */
    return granted;
}

/* Tiles 0 to 2 are sums, 3 is `rows` rows of as many `words`, 4 to 6 are weights. */
static void shape_tiles(int64_t rows, int64_t words) {
    uint8_t r = rows < TILE ? rows : TILE, w = words;
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shapes = {1, 0, {0}, {64, 64, 64, 4 * w, 64, 64, 64}, {r, r, r, r, w, w, w}};
    WRITTEN;
    _tile_loadconfig(&shapes);
}

/* The sums (n, COLUMNS) of `product`, TILE rows at a time. */
static void sum_tiles(int64_t n, int64_t words, const uint32_t *x, int64_t x_stride, const uint32_t *weights, float *sums) {
    for (int64_t r = 0; r < n; r += TILE, x += TILE * x_stride, sums += TILE * COLUMNS) {
        if (r == 0 || n - r < TILE) shape_tiles(n - r, TILE);
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        for (int64_t k = 0; k < words; k += TILE) {
            _tile_loadd(3, x + k, 4 * x_stride);
            _tile_loadd(4, weights + k * COLUMNS, 4 * COLUMNS);
            _tile_loadd(5, weights + k * COLUMNS + TILE, 4 * COLUMNS);
            _tile_loadd(6, weights + k * COLUMNS + 2 * TILE, 4 * COLUMNS);
            _tile_dpbf16ps(0, 3, 4);
            _tile_dpbf16ps(1, 3, 5);
            _tile_dpbf16ps(2, 3, 6);
        }
        _tile_stored(0, sums, 4 * COLUMNS);
        _tile_stored(1, sums + TILE, 4 * COLUMNS);
        _tile_stored(2, sums + 2 * TILE, 4 * COLUMNS);
    }
    _tile_release();
    WRITTEN;
}
#endif

/* The same by vectors, ROWS rows at a time. Sums restart where oneDNN restarts them, for the same roundings. */
static void sum_vectors(int64_t n, int64_t words, const uint32_t *x, int64_t x_stride, const uint32_t *weights, float *sums) {
    int64_t part = (words * PER_WORD > 1024 ? 1024 : 512) / PER_WORD;
    for (int64_t start = 0; start < words; start += part) {
        int64_t end = start + part < words ? start + part : words;
        for (int64_t r = 0; r < n; r += ROWS)
            for (int64_t c = 0; c < COLUMNS; c += VECTORS * LANES) {
                const uint32_t *from[ROWS], *w = weights + c;
                vector sum[ROWS][VECTORS] = {0};
                for (int i = 0; i < ROWS; i++) from[i] = x + (r + i < n ? r + i : n - 1) * x_stride; /* the last row again and again */
                for (int64_t k = start; k < end; k++)
                    for (int i = 0; i < ROWS; i++)
                        for (int j = 0; j < VECTORS; j++) sum[i][j] = add_product(sum[i][j], from[i] + k, w + k * COLUMNS + j * LANES);
                for (int i = 0; i < ROWS && r + i < n; i++)
                    for (int j = 0; j < VECTORS; j++) *(loose *)(sums + (r + i) * COLUMNS + c + j * LANES) += sum[i][j];
            }
    }
}

/* x (n, words) times the weights of m outputs, plus what is `added` (n, m) if there is something; rows are strides apart. A word is
   four bytes: a float or two bfloat16. Of the weights the words of COLUMNS outputs lie side by side. */
void product(int64_t n, int64_t m, int64_t words, const uint32_t *x, int64_t x_stride, const uint32_t *weights, const real *added,
             int64_t added_stride, real *out, int64_t out_stride) {
#pragma omp parallel for if (m * words > 16384)
    for (int64_t first = 0; first < m; first += COLUMNS) {
        int64_t columns = m - first < COLUMNS ? m - first : COLUMNS;
        float *sums = calloc(n * COLUMNS, sizeof *sums);
#ifdef TILES
        if (words % TILE == 0 && tiles())
            sum_tiles(n, words, x, x_stride, weights + first * words, sums);
        else
#endif
            sum_vectors(n, words, x, x_stride, weights + first * words, sums);
        finish(n, columns, sums, added ? added + first : 0, added_stride, out + first, out_stride);
        free(sums);
    }
}

enum { INPUT_WORDS = INPUTS / PER_WORD, AHEAD = 4096 }; /* bytes ahead of those in use that are fetched */

#ifdef BFLOAT16
/* Numbers of less than 8 bits, to be looked up: from the `first` on, in 4 bits twice. */
static inline void look_up(const int bits, int first, __m512i *numbers) {
    real table[64];
    for (int i = 0; i < 64; i++) table[i] = narrow(i % (1 << bits) + first);
    numbers[0] = _mm512_loadu_si512(table), numbers[1] = _mm512_loadu_si512(table + 32);
}

/* The i-th number in less than 8 bits of INPUTS inputs of COLUMNS outputs and the 31 after it, in bfloat16: LANES words. Looked up by five bits
   or six, of which the last does not matter where there are four. */
static inline __attribute__((always_inline)) __m512i looked_up(const int bits, const uint8_t *from, const int i, const __m512i *numbers) {
    __m512i which = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(from + i % HALF)));
    if (i >= HALF) which = _mm512_srli_epi16(which, 4);
    if (bits > 4) {
        const int held = HALF / 4 * (bits - 4), shift = i / held * (bits - 4);
        __m512i more = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(from + HALF + i % held)));
        more = shift < 4 ? _mm512_slli_epi16(more, 4 - shift) : _mm512_srli_epi16(more, shift - 4);
        which = _mm512_ternarylogic_epi32(which, more, _mm512_set1_epi16(15), 0xe4); /* where there is a 1 in 15 the first, else the second */
    }
    return bits == 6 ? _mm512_permutex2var_epi16(numbers[0], which, numbers[1]) : _mm512_permutexvar_epi16(which, numbers[0]);
}

static inline __attribute__((always_inline)) void expand_by_table(const int bits, const struct quantized *w, const uint8_t *from, uint32_t *to) {
    __m512i numbers[2];
    look_up(bits, least(w), numbers);
#pragma GCC unroll 48
    for (int i = 0; i < 2 * HALF; i += 2 * LANES) _mm512_storeu_si512(to + i / 2, looked_up(bits, from, i, numbers));
}
#endif

/* The numbers of INPUTS inputs of COLUMNS outputs as `product` reads weights. */
static inline void expand(const struct quantized *w, const uint8_t *from, uint32_t *to) {
#ifdef BFLOAT16
    if (w->bits == 4) expand_by_table(4, w, from, to);
    if (w->bits == 5) expand_by_table(5, w, from, to);
    if (w->bits == 6) expand_by_table(6, w, from, to);
    for (int i = 0; i < HALF && w->bits == 8; i += LANES) { /* whole numbers below 256 are floats that end in 16 zeros */
        __m512i both = _mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)(from + 2 * i)));
        __m512i odd = _mm512_srai_epi32(both, 8), even = _mm512_srai_epi32(_mm512_slli_epi32(both, 24), 24);
        odd = (__m512i)_mm512_cvtepi32_ps(odd), even = (__m512i)_mm512_cvtepi32_ps(even);
        _mm512_storeu_si512(to + i, _mm512_or_si512(odd, _mm512_srli_epi32(even, 16)));
    }
#else
    int8_t room[2 * HALF];
    const int8_t *numbers = in_8_bits(w, from, room);
    float *out = (float *)to;
    for (int k = 0; k < INPUTS; k += 2, numbers += 2 * COLUMNS, out += 2 * COLUMNS)
        for (int c = 0; c < COLUMNS; c++) out[c] = numbers[2 * c], out[COLUMNS + c] = numbers[2 * c + 1];
#endif
}

/* sum + x * y, rounded once wherever it stands. */
static inline vector fused(vector sum, vector x, vector y) {
#ifdef __AVX512F__
    return (vector)_mm512_fmadd_ps((__m512)x, (__m512)y, (__m512)sum);
#elif defined __AVX2__ && defined __FMA__
    return (vector)_mm256_fmadd_ps((__m256)x, (__m256)y, (__m256)sum);
#else
    return sum + x * y;
#endif
}

/* LANES halves of a float as floats. */
static inline vector halves(const uint16_t *x) {
#ifdef __AVX512F__
    return (vector)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)x));
#else
    vector y;
    for (int i = 0; i < LANES; i++) y[i] = half(x[i]);
    return y;
#endif
}

/* For `product_quantized`, by vectors, `rows` rows at a time: the sums of the inputs that share a scale, each times its scale. Those of the first
   of `blocks` blocks are at `block`, their scales at spans(w) * COLUMNS times that; `totals` (n, spans(w) * blocks) are the sums of x, for
   minima. There is room for a block in `words`, for all if rows do it again. */
static inline __attribute__((always_inline)) void blocks_by_vectors(const int rows, int64_t n, int64_t blocks, const uint32_t *x, int64_t x_stride,
                                                                    const struct quantized *w, int64_t block, const float *totals,
                                                                    uint32_t *words, float *sums) {
    int64_t apart = n > rows ? INPUT_WORDS * COLUMNS : 0, each = INPUT_WORDS / spans(w);
    for (int64_t r = 0; r < n; r += rows) {
        const uint32_t *from[ROWS];
        for (int i = 0; i < rows; i++) from[i] = x + (r + i < n ? r + i : n - 1) * x_stride; /* the last row again and again */
        for (int64_t span = 0; span < blocks * spans(w); span++) {
            int64_t b = span / spans(w), within = span % spans(w) * each, scale = (block * spans(w) + span) * COLUMNS;
            uint32_t *here = words + b * apart;
            if (r == 0 && within == 0) expand(w, w->numbers + (block + b) * block_bytes(w), here);
            here += within * COLUMNS;
            for (int64_t c = 0; c < COLUMNS; c += VECTORS * LANES) {
                vector sum[ROWS][VECTORS] = {0};
                for (int k = 0; k < each; k++)
                    for (int i = 0; i < rows; i++)
                        for (int j = 0; j < VECTORS; j++)
                            sum[i][j] = add_product(sum[i][j], from[i] + span * each + k, here + k * COLUMNS + c + j * LANES);
                for (int i = 0; i < rows && r + i < n; i++)
                    for (int j = 0; j < VECTORS; j++) {
                        loose *to = (loose *)(sums + (r + i) * COLUMNS + c + j * LANES);
                        *to = fused(*to, halves(w->scales + scale + c + j * LANES), sum[i][j]);
                        if (!w->minima) continue;
                        float total = totals[(r + i) * blocks * spans(w) + span];
                        *to = fused(*to, halves(w->minima + scale + c + j * LANES), total - (vector){0});
                    }
            }
        }
    }
}

#ifdef TILES
/* The same for one row, by vectors, with the sums that tiles make: those of even and of odd inputs, then both. To write numbers for tiles to
   read takes longer than this. */
static inline __attribute__((always_inline)) void blocks_of_one_row(const int bits, int64_t blocks, const real *x, const struct quantized *w,
                                                                    int64_t block, const float *totals, float *sums) {
    enum { PAIRS = INPUTS / 2 };
    const int each = bits == 6 ? PAIRS / 2 : PAIRS;
    const uint8_t *from = w->numbers + block * block_bytes(w);
    vector total[VECTORS] = {0};
    __m512i numbers[2];
    if (bits < 8) look_up(bits, least(w), numbers);
#ifdef __AVX512VBMI__ /* numbers in 8 bits are brought to the highest byte of a word each, and so are 2^24 times as large until they are scaled */
    const float larger = bits == 8 ? 0x1p24f : 1;
    const __m512i places = _mm512_slli_epi32(_mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0), 24);
    const __m512i beside = _mm512_add_epi32(places, _mm512_set1_epi32(1 << 24));
#else
    const float larger = 1;
#endif
    block *= PAIRS / each;
    for (int64_t b = 0; b < blocks; b++, x += INPUTS, from += HALF / 4 * bits) {
        __m512 even[VECTORS], odd[VECTORS], first, second;
        float by[INPUTS];
        for (int k = 0; k < INPUTS; k++) by[k] = wide(x[k]);
        for (int line = 0; line < HALF / 4 * bits; line += 64) __builtin_prefetch(from + AHEAD + line);
#pragma GCC unroll 16
        for (int k = 0; k < PAIRS; k++) {
#pragma GCC unroll 3
            for (int j = 0; j < VECTORS; j++) {
                const int i = 2 * (k * COLUMNS + j * LANES);
                if (bits == 8) {
                    __m256i held = _mm256_loadu_si256((const __m256i *)(from + i));
#ifdef __AVX512VBMI__
                    __m512i pairs = _mm512_castsi256_si512(held);
                    first = _mm512_cvtepi32_ps(_mm512_maskz_permutexvar_epi8(0x8888888888888888, places, pairs));
                    second = _mm512_cvtepi32_ps(_mm512_maskz_permutexvar_epi8(0x8888888888888888, beside, pairs));
#else
                    __m512i pair = _mm512_cvtepi16_epi32(held);
                    first = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(pair, 24), 24));
                    second = _mm512_cvtepi32_ps(_mm512_srai_epi32(pair, 8));
#endif
                } else {
                    __m512i pair = looked_up(bits, from, i, numbers);
                    first = (__m512)_mm512_slli_epi32(pair, 16);
                    second = (__m512)_mm512_and_si512(pair, _mm512_set1_epi32(0xffff0000));
                }
                if (k % each == 0) even[j] = odd[j] = _mm512_setzero_ps();
                even[j] = _mm512_fmadd_ps(first, _mm512_set1_ps(by[2 * k]), even[j]);
                odd[j] = _mm512_fmadd_ps(second, _mm512_set1_ps(by[2 * k + 1]), odd[j]);
            }
            if ((k + 1) % each) continue;
#pragma GCC unroll 3
            for (int j = 0; j < VECTORS; j++) {
                total[j] = fused(total[j], halves(w->scales + block * COLUMNS + j * LANES) / larger, (vector)(even[j] + odd[j]));
                if (w->minima) total[j] = fused(total[j], halves(w->minima + block * COLUMNS + j * LANES), *totals - (vector){0});
            }
            block++, totals++;
        }
    }
    for (int j = 0; j < VECTORS; j++) *(loose *)(sums + j * LANES) = total[j];
}

/* The same by tiles, of whose rows the first `rows` count, `columns` tiles of outputs at a time. */
static inline __attribute__((always_inline)) void blocks_by_tiles(const int rows, const int columns, int64_t n, int64_t blocks, const uint32_t *x,
                                                                  int64_t x_stride, const struct quantized *w, int64_t block,
                                                                  const float *totals, uint32_t *words, float *sums) {
    int64_t apart = n > rows || columns < VECTORS ? INPUT_WORDS * COLUMNS : 0, each = INPUT_WORDS / spans(w);
    for (int64_t r = 0; r < n; r += TILE) {
        int64_t here = n - r < TILE ? n - r : TILE;
        if (r == 0 || here < TILE) shape_tiles(here, each);
        for (int c = 0; c < VECTORS; c += columns) {
            vector sum[TILE][VECTORS] = {0}, found[2][VECTORS][TILE] = {0};
            for (int64_t span = 0; span < blocks * spans(w); span++) {
                int64_t b = span / spans(w), within = span % spans(w) * each, scale = (block * spans(w) + span) * COLUMNS;
                uint32_t *from = words + b * apart;
                if (r == 0 && c == 0 && within == 0) expand(w, w->numbers + (block + b) * block_bytes(w), from);
                from += within * COLUMNS;
                WRITTEN;
                _tile_loadd(3, x + r * x_stride + span * each, 4 * x_stride);
#pragma GCC unroll 3
                for (int j = 0; j < columns; j++) {
                    _tile_zero(0);
                    _tile_loadd(4, from + (c + j) * TILE, 4 * COLUMNS);
                    _tile_dpbf16ps(0, 3, 4);
                    _tile_stored(0, found[span % 2][j], 64);
                }
                WRITTEN;
#pragma GCC unroll 3
                for (int j = 0; j < columns; j++) {
                    vector times = halves(w->scales + scale + (c + j) * TILE);
#pragma GCC unroll 16
                    for (int i = 0; i < rows; i++) sum[i][j] = fused(sum[i][j], times, found[span % 2][j][i]);
                    if (!w->minima) continue;
                    times = halves(w->minima + scale + (c + j) * TILE);
#pragma GCC unroll 16
                    for (int i = 0; i < rows; i++)
                        sum[i][j] = fused(sum[i][j], times, totals[(r + (i < here ? i : 0)) * blocks * spans(w) + span] - (vector){0});
                }
            }
            for (int i = 0; i < rows && i < here; i++)
                for (int j = 0; j < columns; j++) *(loose *)(sums + (r + i) * COLUMNS + (c + j) * TILE) = sum[i][j];
        }
    }
    _tile_release();
    WRITTEN;
}
#endif

/* The sums (n, COLUMNS) of `product_quantized`, as above. */
static void sum_blocks(int64_t n, int64_t blocks, const uint32_t *x, int64_t x_stride, const struct quantized *w, int64_t block,
                       const float *totals, uint32_t *words, float *sums) {
#ifdef TILES
    if (tiles() && n == 1) {
        if (w->bits == 4) blocks_of_one_row(4, blocks, (const real *)x, w, block, totals, sums);
        if (w->bits == 5) blocks_of_one_row(5, blocks, (const real *)x, w, block, totals, sums);
        if (w->bits == 6) blocks_of_one_row(6, blocks, (const real *)x, w, block, totals, sums);
        if (w->bits == 8) blocks_of_one_row(8, blocks, (const real *)x, w, block, totals, sums);
    } else if (tiles() && n <= 8)
        blocks_by_tiles(8, VECTORS, n, blocks, x, x_stride, w, block, totals, words, sums);
    else if (tiles())
        blocks_by_tiles(TILE, 1, n, blocks, x, x_stride, w, block, totals, words, sums);
    else
#endif
        if (n == 1)
        blocks_by_vectors(1, n, blocks, x, x_stride, w, block, totals, words, sums);
    else
        blocks_by_vectors(ROWS, n, blocks, x, x_stride, w, block, totals, words, sums);
}

/* The sums of x (n, words) over the inputs that share a scale, one row after the other; nothing where there are no minima. */
static float *sum_x(int64_t n, int64_t words, const uint32_t *x, int64_t x_stride, const struct quantized *w) {
    const int64_t blocks = words / INPUT_WORDS * spans(w);
    float *totals = w->minima ? calloc(n * blocks, sizeof *totals) : 0;
    for (int64_t i = 0; i < n * blocks && totals; i++) {
        const real *from = (const real *)(x + i / blocks * x_stride) + i % blocks * INPUTS / spans(w);
        for (int k = 0; k < INPUTS / spans(w); k++) totals[i] += wide(from[k]);
    }
    return totals;
}

/* `product` with quantized weights: numbers are multiplied with x as they are, and the sum of those that share a scale with it. */
void product_quantized(int64_t n, int64_t words, const uint32_t *x, int64_t x_stride, const struct quantized *w, const real *added,
                       int64_t added_stride, real *out, int64_t out_stride) {
    const int64_t blocks = words / INPUT_WORDS;
    for (; w; added += added ? w->outputs : 0, out += w->outputs, w = w->below) {
        float *totals = sum_x(n, words, x, x_stride, w);
#pragma omp parallel for if (w->outputs * words > 16384)
        for (int64_t first = 0; first < w->outputs; first += COLUMNS) {
            int64_t columns = w->outputs - first < COLUMNS ? w->outputs - first : COLUMNS;
            float *sums = calloc(n * COLUMNS, sizeof *sums);
            uint32_t *room = aligned_alloc(64, (n > 1 ? blocks : 1) * INPUT_WORDS * COLUMNS * sizeof *room);
            sum_blocks(n, blocks, x, x_stride, w, first / COLUMNS * blocks, totals, room, sums);
            finish(n, columns, sums, added ? added + first : 0, added_stride, out + first, out_stride);
            free(room);
            free(sums);
        }
        free(totals);
    }
}
#endif

/* x (n, c) over its root mean square, times plus + weight (c); and what it was multiplied with, scale (n). Not inlined: `decode` has the same
   sums. */
__attribute__((noinline)) void norm(int64_t n, int64_t c, const real *x, const real *weight, float eps, float plus, real *out,
                                    float *scale) {
#pragma omp parallel for if (n * c > 32768)
    for (int64_t i = 0; i < n; i++) {
        const real *from = x + i * c;
        real *to = out + i * c;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < c; j++) sum += wide(from[j]) * wide(from[j]);
        scale[i] = 1 / sqrtf(sum / c + eps);
        for (int64_t j = 0; j < c; j++) to[j] = narrow(rounded(wide(from[j]) * scale[i]) * (plus + wide(weight[j])));
    }
}

/* What reaches x, `out`, where `gradient` (n, c) reaches norm(x), `scale` being what it multiplied x with; and what reaches weight,
   added to `sums` (ceil(n / 64), c), of 64 rows each. */
void norm_backward(int64_t n, int64_t c, const real *x, const real *weight, float plus, const float *scale, const real *gradient,
                   real *out, float *sums) {
#pragma omp parallel for if (n * c > 32768)
    for (int64_t first = 0; first < n; first += 64)
        for (int64_t i = first; i < n && i < first + 64; i++) {
            const real *from = x + i * c, *slope = gradient + i * c;
            float shared = 0, *sum = sums + first / 64 * c;
#pragma omp simd reduction(+ : shared)
            for (int64_t j = 0; j < c; j++) shared += wide(slope[j]) * (plus + wide(weight[j])) * (wide(from[j]) * scale[i]);
            shared /= c;
            for (int64_t j = 0; j < c; j++)
                out[i * c + j] = narrow((wide(slope[j]) * (plus + wide(weight[j])) - wide(from[j]) * scale[i] * shared) * scale[i]);
            for (int64_t j = 0; j < c; j++) sum[j] += wide(slope[j]) * (wide(from[j]) * scale[i]);
        }
}

/* x times sigmoid(bend(x)) is silu(x) or, to within float, gelu(x) with tanh: (1 + tanh(u)) / 2 is sigmoid(2 u). */
static inline float bend(int gelu, float x) { return gelu ? x * (1.5957691216f + 0.0713548162726f * x * x) : x; }
static inline float bend_slope(int gelu, float x) { return gelu ? 1.5957691216f + 0.2140644488178f * x * x : 1; }

/* silu(gate) * up, or gelu(gate) * up, (n, m), of both (n, 2 m). */
static inline __attribute__((always_inline)) void gated(const int gelu, int64_t n, int64_t m, const real *both, real *out) {
#pragma omp parallel for if (n * m > 16384)
    for (int64_t i = 0; i < n; i++) {
        const real *gate = both + i * 2 * m, *up = gate + m;
        real *to = out + i * m;
        for (int64_t j = 0; j < m; j++) {
            float x = wide(gate[j]);
            to[j] = narrow(rounded(x / (1 + exponential(-bend(gelu, x)))) * wide(up[j]));
        }
    }
}
void glu(int64_t gelu, int64_t n, int64_t m, const real *both, real *out) { /* a loop for each */
    gelu ? gated(1, n, m, both, out) : gated(0, n, m, both, out);
}

/* What reaches both, `out` (n, 2 m), where `gradient` (n, m) reaches what `glu` gives. */
static inline __attribute__((always_inline)) void gated_backward(const int gelu, int64_t n, int64_t m, const real *both,
                                                                 const real *gradient, real *out) {
#pragma omp parallel for if (n * m > 16384)
    for (int64_t i = 0; i < n; i++) {
        const real *gate = both + i * 2 * m, *up = gate + m, *slope = gradient + i * m;
        real *to = out + i * 2 * m;
        for (int64_t j = 0; j < m; j++) {
            float x = wide(gate[j]), y = 1 / (1 + exponential(-bend(gelu, x)));
            to[j] = narrow(rounded(wide(slope[j]) * wide(up[j])) * y * (1 + x * (1 - y) * bend_slope(gelu, x)));
            to[m + j] = narrow(wide(slope[j]) * rounded(x * y));
        }
    }
}
void glu_backward(int64_t gelu, int64_t n, int64_t m, const real *both, const real *gradient, real *out) {
    gelu ? gated_backward(1, n, m, both, gradient, out) : gated_backward(0, n, m, both, gradient, out);
}

/* Rotary embedding of the first `turned` numbers of every head of x (n, heads, width), rows `stride` apart, in place; cosine and sine
   (n, turned), the sine of the first half negated. */
void rotate(int64_t n, int64_t heads, int64_t width, int64_t turned, int64_t stride, real *x, const real *cosine, const real *sine) {
    int64_t half = turned / 2;
#pragma omp parallel for if (n * heads * width > 32768)
    for (int64_t i = 0; i < n; i++)
        for (int64_t h = 0; h < heads; h++) {
            const real *c = cosine + i * turned, *s = sine + i * turned;
            real *a = x + i * stride + h * width, *b = a + half;
            for (int64_t d = 0; d < half; d++) {
                float first = wide(a[d]), second = wide(b[d]);
                a[d] = narrow(rounded(first * wide(c[d])) + second * wide(s[d]));
                b[d] = narrow(rounded(second * wide(c[half + d])) + first * wide(s[half + d]));
            }
        }
}

/* The `total` of e^x over a row of v logits and, `heat`, that of e^x x, where x = (logit - top) * cold and top is the largest. `ends`, if there
   is room for them, get what the logits up to the end of every BLOCK weigh. Not inlined: what is drawn and what is learnt from have the
   same sums. */
enum { BLOCK = 256 };
struct weight {
    float top;
    double total, heat;
};
__attribute__((noinline)) static struct weight weigh(int64_t v, const real *row, float cold, double *ends) {
    struct weight found = {-INFINITY, 0, 0};
    float top = -INFINITY;
#pragma omp simd reduction(max : top)
    for (int64_t l = 0; l < v; l++) top = wide(row[l]) > top ? wide(row[l]) : top;
    for (int64_t first = 0; first < v; first += BLOCK) {
        float sum = 0, heat = 0;
        int64_t end = first + BLOCK < v ? first + BLOCK : v;
#pragma omp simd reduction(+ : sum, heat)
        for (int64_t l = first; l < end; l++) {
            float x = (wide(row[l]) - top) * cold, e = exponential(x);
            sum += e;
            heat += e * x;
        }
        found.total += sum;
        found.heat += heat;
        if (ends) ends[first / BLOCK] = found.total;
    }
    found.top = top;
    return found;
}

/* For each row of logits (n, v) the token where the cumulative sum of exp(logit / temperature) passes its total times uniforms[i], and its
   log-probability. Two passes: how much every block of tokens weighs, then where in one of them. */
void draw(int64_t n, int64_t v, const real *logits, const double *uniforms, float temperature, int64_t *tokens, float *logprobs) {
#pragma omp parallel for if (n > 1)
    for (int64_t i = 0; i < n; i++) {
        const real *row = logits + i * v;
        float cold = 1 / temperature;
        int64_t blocks = (v + BLOCK - 1) / BLOCK, at = 0, token = 0;
        double *ends = malloc(blocks * sizeof *ends);
        struct weight all = weigh(v, row, cold, ends);
        double wanted = uniforms[i] * all.total; /* below the total, since uniforms are below 1 */
        while (at < blocks - 1 && ends[at] <= wanted) at++;
        double left = wanted - (at ? ends[at - 1] : 0);
        for (int64_t l = at * BLOCK; l < v && left >= 0; l++) {
            float weight = exponential((wide(row[l]) - all.top) * cold);
            if (weight > 0) token = l;
            left -= weight;
        }
        tokens[i] = token;
        logprobs[i] = (wide(row[token]) - all.top) * cold - log(all.total);
        free(ends);
    }
}

/* For each row of logits (n, v) the log-probability of its target under softmax(logits / temperature), and the entropy. If there are
   `slopes` (n) the logits are overwritten: slopes[i] times the derivative of that log-probability. */
void token_logprobs(int64_t n, int64_t v, real *logits, const int64_t *targets, float temperature, const float *slopes,
                    float *logprobs, float *entropies) {
#pragma omp parallel for
    for (int64_t i = 0; i < n; i++) {
        real *row = logits + i * v;
        float cold = 1 / temperature, target = wide(row[targets[i]]);
        struct weight all = weigh(v, row, cold, 0);
        logprobs[i] = (target - all.top) * cold - log(all.total);
        entropies[i] = log(all.total) - all.heat / all.total;
        if (!slopes) continue;
        float slope = slopes[i] * cold, share = -slope / all.total, own = exponential((target - all.top) * cold);
        for (int64_t l = 0; l < v; l++) row[l] = narrow(exponential((wide(row[l]) - all.top) * cold) * share);
        row[targets[i]] = narrow(slope + own * share);
    }
}

#ifdef GROUP
enum { KEYS = 4, MOST = GROUP > KEYS ? GROUP : KEYS }; /* keys of which the gradient is summed up together */
#define PART(rows) (WIDTH % 64 == 0 && (rows) * WIDTH > 448 ? 64 : WIDTH) /* columns of so many rows for which there are registers */
#if defined BFLOAT16 && defined __AVX512BF16__ && WIDTH % 32 == 0
#define WORDS (WIDTH / 2)
typedef uint32_t words __attribute__((vector_size(64), aligned(2), may_alias));

static inline __m512 dot(__m512 sum, words x, words y) { return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)y); }

/* p[j] = x * key j for the n places from `keys` on; 16 at a time, and the 16 sums of each are added up in four steps. */
static void score(int64_t n, const real *x, const real *keys, int64_t stride, float *p) {
    for (int64_t start = 0; start < n; start += 16) {
        __m512 sum[16];
#pragma GCC unroll 16
        for (int j = 0; j < 16; j++) {
            const real *key = keys + (start + j < n ? start + j : n - 1) * stride; /* the last one again and again */
            sum[j] = _mm512_setzero_ps();
            for (int d = 0; d < WIDTH; d += 32) sum[j] = dot(sum[j], *(const words *)(x + d), *(const words *)(key + d));
        }
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) sum[j] = _mm512_unpacklo_ps(sum[2 * j], sum[2 * j + 1]) + _mm512_unpackhi_ps(sum[2 * j], sum[2 * j + 1]);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            __m512d a = (__m512d)sum[2 * j], b = (__m512d)sum[2 * j + 1];
            sum[j] = (__m512)_mm512_unpacklo_pd(a, b) + (__m512)_mm512_unpackhi_pd(a, b);
        }
#pragma GCC unroll 3
        for (int j = 0; j < 3; j++) { /* of the sums 0 and 1, of 2 and 3, then of these two */
            __m512 a = j < 2 ? sum[2 * j] : sum[0], b = j < 2 ? sum[2 * j + 1] : sum[1];
            sum[j < 2 ? j : 0] = _mm512_shuffle_f32x4(a, b, 0x88) + _mm512_shuffle_f32x4(a, b, 0xdd);
        }
        *(__m512 *)(p + start) = sum[0];
    }
}

/* out = the sum of p[g * apart + j * step] * value j over n places, for g below `rows`. Two places at a time, and PART columns. */
static inline __attribute__((always_inline)) void mix(const int rows, int64_t n, const real *p, int64_t apart, int64_t step,
                                                      const real *values, int64_t stride, real *out) {
    const int part = PART(rows);
    for (int c = 0; c < WIDTH; c += part) {
        __m512 even[MOST][WIDTH / 32] = {0}, odd[MOST][WIDTH / 32] = {0};
        for (int64_t j = 0; j < n; j += 2) {
            const real *a = values + j * stride + c, *b = j + 1 < n ? a + stride : a, *share = p + j * step;
            for (int d = 0; d < part / 32; d++) {
                words x = *(const words *)(a + 32 * d), y = *(const words *)(b + 32 * d);
                for (int g = 0; g < rows; g++) {
                    words both = (words){0} + (share[g * apart] | (j + 1 < n ? (uint32_t)share[g * apart + step] << 16 : 0));
                    even[g][d] = dot(even[g][d], both, (x & 0xffff) | y << 16);
                    odd[g][d] = dot(odd[g][d], both, x >> 16 | (y & 0xffff0000));
                }
            }
        }
        for (int g = 0; g < rows; g++)
            for (int d = 0; d < part / 32; d++) {
                words x = (words)even[g][d], y = (words)odd[g][d]; /* narrowed as above */
                x += 0x7fff + (x >> 16 & 1), y += 0x7fff + (y >> 16 & 1);
                *(words *)(out + g * WIDTH + c + 32 * d) = x >> 16 | (y & 0xffff0000);
            }
    }
}
#else
static void score(int64_t n, const real *x, const real *keys, int64_t stride, float *p) {
    for (int64_t j = 0; j < n; j++) {
        float sums[8] = {0}; /* one vector, and summed by halves: in order would take twice as long */
        for (int d = 0; d < WIDTH; d += 8)
#pragma omp simd
            for (int i = 0; i < 8; i++) sums[i] += wide(x[d + i]) * wide(keys[j * stride + d + i]);
        for (int half = 4; half; half /= 2)
            for (int i = 0; i < half; i++) sums[i] += sums[i + half];
        p[j] = sums[0];
    }
}

static inline __attribute__((always_inline)) void mix(const int rows, int64_t n, const real *p, int64_t apart, int64_t step,
                                                      const real *values, int64_t stride, real *out) {
    const int part = PART(rows);
    for (int c = 0; c < WIDTH; c += part) {
        float sum[MOST][WIDTH] = {0};
        for (int64_t j = 0; j < n; j++)
            for (int g = 0; g < rows; g++)
                for (int d = 0; d < part; d++) sum[g][d] += wide(p[g * apart + j * step]) * wide(values[j * stride + c + d]);
        for (int g = 0; g < rows; g++)
            for (int d = 0; d < part; d++) out[g * WIDTH + c + d] = narrow(sum[g][d]);
    }
}
#endif

/* The GROUP query heads q of one token see n places of a key head, whose rows are as far apart as the strides say. `kept`, if there is room
   for them, gets the shares, those of one head `apart` from those of the next. */
static void see(int64_t n, float scale, const real *q, const real *keys, int64_t k_stride, const real *values, int64_t v_stride, real *kept,
                int64_t apart, real *out) {
    int64_t room = (n + 31) / 32 * 32; /* whole vectors: what is left over costs as much as they do */
    float *scores = aligned_alloc(64, GROUP * room * (sizeof *scores + sizeof *kept));
    real *shares = (real *)(scores + GROUP * room), query[GROUP * WIDTH];
    for (int d = 0; d < GROUP * WIDTH; d++) query[d] = narrow(wide(q[d]) * scale);
    for (int g = 0; g < GROUP; g++) {
        score(n, query + g * WIDTH, keys, k_stride, scores + g * room);
        for (int64_t j = n; j < room; j++) scores[g * room + j] = -INFINITY;
    }
    for (int64_t j = 0; j < GROUP * room; j++) scores[j] = rounded(scores[j]);
    for (int g = 0; g < GROUP; g++) {
        float *own = scores + g * room, top = -INFINITY, total = 0;
#pragma omp simd reduction(max : top)
        for (int64_t j = 0; j < room; j++) top = own[j] > top ? own[j] : top;
#pragma omp simd reduction(+ : total)
        for (int64_t j = 0; j < room; j++) total += own[j] = exponential(own[j] - top);
        for (int64_t j = 0; j < room; j++) shares[g * room + j] = narrow(own[j] / total);
        if (kept) memcpy(kept + g * apart, shares + g * room, n * sizeof *kept);
    }
    mix(GROUP, n, shares, room, 1, values, v_stride, out);
    free(scores);
}

/* A decoding step: the key and value of each of n rows go to place positions[i] of its cache, (n, kv, room, WIDTH) each, and its queries
   see them and what is before them, at most `window` in all. */
void step(int64_t n, int64_t kv, int64_t room, int64_t window, const int64_t *positions, const real *q, int64_t q_stride, const real *k,
          int64_t k_stride, const real *v, int64_t v_stride, real *keys, real *values, float scale, real *out) {
#pragma omp parallel for collapse(2) if (n > 1)
    for (int64_t i = 0; i < n; i++)
        for (int64_t h = 0; h < kv; h++) {
            int64_t last = positions[i], first = last < window ? 0 : last - window + 1, place = (i * kv + h) * room * WIDTH;
            memcpy(keys + place + last * WIDTH, k + i * k_stride + h * WIDTH, WIDTH * sizeof(real));
            memcpy(values + place + last * WIDTH, v + i * v_stride + h * WIDTH, WIDTH * sizeof(real));
            see(last + 1 - first, scale, q + i * q_stride + h * GROUP * WIDTH, keys + place + first * WIDTH, WIDTH,
                values + place + first * WIDTH, WIDTH, 0, 0, out + (i * kv + h) * GROUP * WIDTH);
        }
}

/* The last n of s tokens see themselves and what is before them, at most `window` in all; `kept` (kv, n, GROUP, room) gets their shares, room
   being s or a little more. */
void piece(int64_t n, int64_t s, int64_t kv, int64_t window, const real *q, int64_t q_stride, const real *k, int64_t k_stride,
           const real *v, int64_t v_stride, float scale, int64_t room, real *kept, real *out) {
#pragma omp parallel for collapse(2) schedule(dynamic, 16) if (n > 1)
    for (int64_t h = 0; h < kv; h++)
        for (int64_t i = 0; i < n; i++) {
            int64_t last = s - n + i, first = last < window ? 0 : last - window + 1;
            real *own = kept ? memset(kept + (h * n + i) * GROUP * room, 0, GROUP * room * sizeof *own) : 0;
            see(last + 1 - first, scale, q + i * q_stride + h * GROUP * WIDTH, k + first * k_stride + h * WIDTH, k_stride,
                v + first * v_stride + h * WIDTH, v_stride, kept ? own + first : 0, room, out + (i * kv + h) * GROUP * WIDTH);
        }
}

/* What reaches the q, k and v of `piece`, to_q, to_k and to_v, where `gradient` reaches what it gave; their rows lie side by side, and room is
   a multiple of KEYS. */
void piece_backward(int64_t n, int64_t s, int64_t kv, int64_t window, const real *q, int64_t q_stride, const real *k, int64_t k_stride,
                    const real *v, int64_t v_stride, float scale, int64_t room, const real *kept, const real *gradient, real *to_q,
                    real *to_k, real *to_v) {
    enum { ROW = GROUP * WIDTH };
    real *slopes = calloc(kv * n * GROUP, room * sizeof *slopes); /* what reaches the scores, as `kept` lies */
    real *queries = malloc(2 * kv * n * ROW * sizeof *queries), *reach = queries + kv * n * ROW; /* key head by key head */
#pragma omp parallel if (n > 1)
    {
#pragma omp for collapse(2) schedule(dynamic, 16)
        for (int64_t h = 0; h < kv; h++)
            for (int64_t i = 0; i < n; i++) {
                int64_t last = s - n + i, first = last < window ? 0 : last - window + 1, seen = last + 1 - first, own = h * n + i;
                float *dots = aligned_alloc(64, (seen + 15) / 16 * 16 * sizeof *dots);
                memcpy(queries + own * ROW, q + i * q_stride + h * ROW, ROW * sizeof *q);
                memcpy(reach + own * ROW, gradient + (i * kv + h) * ROW, ROW * sizeof *q);
                for (int g = 0; g < GROUP; g++) {
                    const real *share = kept + (own * GROUP + g) * room + first;
                    real *slope = slopes + (own * GROUP + g) * room + first;
                    float sum = 0;
                    score(seen, reach + own * ROW + g * WIDTH, v + first * v_stride + h * WIDTH, v_stride, dots);
#pragma omp simd reduction(+ : sum)
                    for (int64_t j = 0; j < seen; j++) sum += wide(share[j]) * dots[j];
                    for (int64_t j = 0; j < seen; j++) slope[j] = narrow(wide(share[j]) * (dots[j] - sum) * scale);
                }
                mix(GROUP, seen, slopes + own * GROUP * room + first, room, 1, k + first * k_stride + h * WIDTH, k_stride,
                    to_q + (i * kv + h) * ROW);
                free(dots);
            }
#pragma omp for collapse(2) schedule(dynamic, 4)
        for (int64_t h = 0; h < kv; h++)
            for (int64_t j = 0; j < s; j += KEYS) { /* seen by the queries from `first` to `end` */
                int64_t first = j > s - n ? j - (s - n) : 0, end = j + KEYS - 1 + window - (s - n), own = (h * n + first) * GROUP;
                int64_t seers = ((end < n ? end : n) - first) * GROUP;
                real found[2][KEYS * WIDTH];
                mix(KEYS, seers, slopes + own * room + j, 1, room, queries + own * WIDTH, WIDTH, found[0]);
                mix(KEYS, seers, kept + own * room + j, 1, room, reach + own * WIDTH, WIDTH, found[1]);
                for (int64_t i = j; i < s && i < j + KEYS; i++) {
                    memcpy(to_k + (i * kv + h) * WIDTH, found[0] + (i - j) * WIDTH, WIDTH * sizeof *q);
                    memcpy(to_v + (i * kv + h) * WIDTH, found[1] + (i - j) * WIDTH, WIDTH * sizeof *q);
                }
            }
    }
    free(slopes);
    free(queries);
}

#ifdef PRODUCT
/* A linear layer, its weight laid out or quantized; bias is 0 if there is none. To each of its parts a low-rank update may be added: x down,
   weighed by `scale` or for row r by share[which[r]] (rank), times `up`. The `rank` outputs of `down` are shared out among the parts. */
struct linear {
    const uint32_t *weight;
    struct quantized quantized;
    const real *bias;
    const uint32_t *down, *up[3];
    int64_t outputs[3], rank;
    const real *share;
    float scale;
};

/* A block; `shift` is what is added after it, row which[r] to row r of x. Its tokens see `window` tokens and turn by the table `rope` of
   rotary positions. What a model has not is 0. */
struct block {
    const real *norm1, *norm2, *after1, *after2, *q_norm, *k_norm, *shift;
    int64_t window, rope;
    struct linear qkv, out, up, down;
};

/* What all blocks of a model have in common: norms multiply with plus + weight, what a block adds is multiplied with `residual`, queries
   with `query`; the MLP is m wide and its gate gelu or silu; a norm of queries and keys is of each head, or of all together; `turned`
   numbers of a head have rotary positions. */
struct family {
    float eps, plus, residual, query;
    int64_t m, gelu, together, turned;
};

static void linear(int64_t n, int64_t inputs, int64_t outputs, const real *x, const struct linear *l, const int64_t *which, real *out) {
    int64_t words = inputs / PER_WORD, parts = !!l->up[0] + !!l->up[1] + !!l->up[2], rank = parts ? l->rank / parts : 0;
    if (l->quantized.bits)
        product_quantized(n, words, (uint32_t *)x, words, &l->quantized, l->bias, 0, out, outputs);
    else
        product(n, outputs, words, (uint32_t *)x, words, l->weight, l->bias, 0, out, outputs);
    if (!parts) return;
    real *low = malloc(n * l->rank * sizeof *low);
    product(n, l->rank, words, (uint32_t *)x, words, l->down, 0, 0, low, l->rank);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < l->rank; j++) {
            float weight = l->share ? wide(l->share[which[i] * l->rank + j]) : l->scale;
            low[i * l->rank + j] = narrow(wide(low[i * l->rank + j]) * weight);
        }
    for (int64_t i = 0; i < parts; out += l->outputs[i++])
        product(n, l->outputs[i], rank / PER_WORD, (uint32_t *)(low + i * rank), l->rank / PER_WORD, l->up[i], out, outputs, out, outputs);
    free(low);
}

static void add(int64_t n, float share, const real *y, real *x) {
    for (int64_t i = 0; i < n; i++) x[i] = narrow(rounded(share * wide(y[i])) + wide(x[i]));
}

/* x (n, c) normed, in `out`, where there is a norm; else x. */
static real *normed_or_not(int64_t n, int64_t c, real *x, const real *weight, const struct family *f, real *out, float *scales) {
    if (weight) norm(n, c, x, weight, f->eps, f->plus, out, scales);
    return weight ? out : x;
}

/* All blocks for one new token of n rows: x (n, c) in, hidden states out, in place; caches of blocks are `apart`. What transformer.py does
   with the same functions one by one. */
void decode(int64_t blocks, const struct block *block, const struct family *f, int64_t n, int64_t c, int64_t kv, const int64_t *positions,
            const real *cosine, const real *sine, const int64_t *which, real *keys, real *values, int64_t room, int64_t apart, real *x) {
    int64_t heads = GROUP * kv, q_width = heads * WIDTH, qkv_width = (heads + 2 * kv) * WIDTH, m = f->m, parts = f->together ? 1 : heads;
    real *normed = malloc(n * (c + qkv_width + q_width + 3 * m) * sizeof *normed), *qkv = normed + n * c, *mixed = qkv + n * qkv_width;
    real *up = mixed + n * q_width, *inner = up + n * 2 * m, *k = qkv + q_width, *v = k + kv * WIDTH, *given;
    float *scales = malloc((n > heads ? n : heads) * sizeof *scales);
    for (const struct block *b = block; b < block + blocks; b++, keys += apart, values += apart) {
        given = normed_or_not(n, c, x, b->norm1, f, normed, scales);
        linear(n, c, qkv_width, given, &b->qkv, which, qkv);
        for (int64_t r = 0; r < n && b->q_norm; r++) {
            real *q = qkv + r * qkv_width;
            norm(parts, q_width / parts, q, b->q_norm, f->eps, f->plus, q, scales);
            norm(f->together ? 1 : kv, f->together ? kv * WIDTH : WIDTH, q + q_width, b->k_norm, f->eps, f->plus, q + q_width, scales);
        }
        rotate(n, heads + kv, WIDTH, f->turned, qkv_width, qkv, cosine + b->rope * n * f->turned, sine + b->rope * n * f->turned);
        for (int64_t r = 0; r < n && f->query != 1; r++)
            for (int64_t d = 0; d < q_width; d++) qkv[r * qkv_width + d] = narrow(wide(qkv[r * qkv_width + d]) * f->query);
        step(n, kv, room, b->window ? b->window : room, positions, qkv, qkv_width, k, qkv_width, v, qkv_width, keys, values,
             pow(WIDTH, -0.5), mixed);
        linear(n, q_width, c, mixed, &b->out, which, normed);
        add(n * c, f->residual, normed_or_not(n, c, normed, b->after1, f, normed, scales), x);
        given = normed_or_not(n, c, x, b->norm2, f, normed, scales);
        linear(n, c, 2 * m, given, &b->up, which, up);
        glu(f->gelu, n, m, up, inner);
        linear(n, m, c, inner, &b->down, which, normed);
        add(n * c, f->residual, normed_or_not(n, c, normed, b->after2, f, normed, scales), x);
        for (int64_t r = 0; r < n && b->shift; r++) add(c, 1, b->shift + which[r] * c, x + r * c);
    }
    free(scales);
    free(normed);
}
#endif
#endif
