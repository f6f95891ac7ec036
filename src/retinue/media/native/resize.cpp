// Resampling of pictures with four bytes a pixel, only where a window of the result lies.
//
// Rows first, rounded to grey levels, then columns, with weights of 16 bits: the very levels of torch's
// own resampling. Four rows, or 16 pixels, are computed side by side.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#ifndef __AVX512BW__
#error "written for AVX-512"
#endif
#include <immintrin.h>

namespace {

struct Taps {  // for every output place: first input, and `most` weights (zeros behind the last)
  const int32_t* first;
  const int16_t* weight;
  int64_t most, bits;
};

// 4 rows x 4 pixels -> for two of the pixels, the same channel of both next to each other in 16 bits
inline __m512i pair(__m512i four, bool second) {
  const __m128i low = _mm_setr_epi8(0, -1, 4, -1, 1, -1, 5, -1, 2, -1, 6, -1, 3, -1, 7, -1);
  const __m128i high = _mm_setr_epi8(8, -1, 12, -1, 9, -1, 13, -1, 10, -1, 14, -1, 11, -1, 15, -1);
  return _mm512_shuffle_epi8(four, _mm512_broadcast_i32x4(second ? high : low));
}

inline __m512i weights(const int16_t* at) {
  int32_t two;
  std::memcpy(&two, at, 4);
  return _mm512_set1_epi32(two);
}

inline __m512i four_rows(const uint8_t* at, int64_t stride) {
  __m512i found = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i*)at));
  found = _mm512_inserti32x4(found, _mm_loadu_si128((const __m128i*)(at + stride)), 1);
  found = _mm512_inserti32x4(found, _mm_loadu_si128((const __m128i*)(at + 2 * stride)), 2);
  return _mm512_inserti32x4(found, _mm_loadu_si128((const __m128i*)(at + 3 * stride)), 3);
}

void across(const uint8_t* from, int64_t stride, const Taps& taps, int64_t left, int64_t width,
            uint8_t* to) {
  const __m512i half = _mm512_set1_epi32(1 << (taps.bits - 1));
  const __m128i shift = _mm_cvtsi64_si128(taps.bits);
  for (int64_t x = 0; x < width; x++) {
    const uint8_t* at = from + 4 * taps.first[left + x];
    const int16_t* w = taps.weight + (left + x) * taps.most;
    __m512i sum = half;
    for (int64_t t = 0; t < taps.most; t += 4) {
      const __m512i four = four_rows(at + 4 * t, stride);
      sum = _mm512_add_epi32(sum, _mm512_madd_epi16(pair(four, false), weights(w + t)));
      sum = _mm512_add_epi32(sum, _mm512_madd_epi16(pair(four, true), weights(w + t + 2)));
    }
    sum = _mm512_sra_epi32(sum, shift);
    sum = _mm512_max_epi32(_mm512_min_epi32(sum, _mm512_set1_epi32(255)), _mm512_setzero_si512());
    alignas(16) int32_t pixels[4];
    _mm_store_si128((__m128i*)pixels, _mm512_cvtepi32_epi8(sum));
    for (int64_t r = 0; r < 4; r++) std::memcpy(to + (r * width + x) * 4, &pixels[r], 4);
  }
}

void down(const uint8_t* from, int64_t stride, const int16_t* w, int64_t most, int64_t bits,
          int64_t bytes, uint8_t* to) {
  const __m512i zero = _mm512_setzero_si512(), half = _mm512_set1_epi32(1 << (bits - 1));
  const __m128i shift = _mm_cvtsi64_si128(bits);
  for (int64_t b = 0; b < bytes; b += 64) {
    __m512i s0 = half, s1 = half, s2 = half, s3 = half;
    for (int64_t t = 0; t < most; t += 2) {
      const __m512i one = _mm512_loadu_si512(from + t * stride + b);
      const __m512i two = _mm512_loadu_si512(from + (t + 1) * stride + b);
      const __m512i both = weights(w + t);
      const __m512i low = _mm512_unpacklo_epi8(one, two), high = _mm512_unpackhi_epi8(one, two);
      s0 = _mm512_add_epi32(s0, _mm512_madd_epi16(_mm512_unpacklo_epi8(low, zero), both));
      s1 = _mm512_add_epi32(s1, _mm512_madd_epi16(_mm512_unpackhi_epi8(low, zero), both));
      s2 = _mm512_add_epi32(s2, _mm512_madd_epi16(_mm512_unpacklo_epi8(high, zero), both));
      s3 = _mm512_add_epi32(s3, _mm512_madd_epi16(_mm512_unpackhi_epi8(high, zero), both));
    }
    s0 = _mm512_sra_epi32(s0, shift), s1 = _mm512_sra_epi32(s1, shift);
    s2 = _mm512_sra_epi32(s2, shift), s3 = _mm512_sra_epi32(s3, shift);
    const __m512i packed =
        _mm512_packus_epi16(_mm512_packs_epi32(s0, s1), _mm512_packs_epi32(s2, s3));
    _mm512_storeu_si512(to + b, packed);
  }
}

}  // namespace

// Window (top, left, height, width) of a resampled picture, three bytes a pixel.
extern "C" void resize_window(const uint8_t* from, int64_t rows, int64_t columns, const Taps* h,
                              const Taps* v, int64_t top, int64_t left, int64_t height,
                              int64_t width, uint8_t* to) {
  static thread_local std::vector<uint8_t> middle, line, edge;
  const int64_t stride = 4 * columns;
  const int64_t begin = v->first[top];
  const int64_t end = std::min(rows, v->first[top + height - 1] + v->most);
  const int64_t wide = (4 * width + 63) / 64 * 64;
  // rows that taps of weight nought and whole vectors reach beyond what is there
  middle.resize((end - begin + v->most + 4) * 4 * width + 64), line.resize(wide);
  const int64_t reach = 4 * (h->first[left + width - 1] + h->most) + 16;
  for (int64_t y = begin; y < end; y += 4) {
    uint8_t* out = middle.data() + (y - begin) * 4 * width;
    if (y + 4 < end && (y + 3) * stride + reach <= rows * stride) {
      across(from + y * stride, stride, *h, left, width, out);
      continue;
    }
    // the last rows, copied to where there is room behind them
    edge.assign(4 * (stride + reach), 0);
    for (int64_t r = 0; r < 4 && y + r < rows; r++)
      std::memcpy(edge.data() + r * (stride + reach), from + (y + r) * stride, stride);
    across(edge.data(), stride + reach, *h, left, width, out);
  }
  for (int64_t y = 0; y < height; y++) {
    const int64_t place = top + y;
    down(middle.data() + (v->first[place] - begin) * 4 * width, 4 * width,
         v->weight + place * v->most, v->most, v->bits, 4 * width, line.data());
    uint8_t* out = to + y * 3 * width;
    for (int64_t x = 0; x < width; x++) {
      out[3 * x] = line[4 * x], out[3 * x + 1] = line[4 * x + 1], out[3 * x + 2] = line[4 * x + 2];
    }
  }
}
