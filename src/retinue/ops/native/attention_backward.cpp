// Gradient of attention in bfloat16 on a CPU, one pass over blocks of keys and queries.
//
// Products run on torch's own block kernels (oneDNN: AMX or AVX-512), what lies between them stays
// in the cache. Scores are transposed (keys x queries): weights and their gradients are then left
// operands as they are, and statistics of queries lie along the vectors.
// Reference: FlashAttention-2, arXiv 2307.08691, algorithm 2.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace c10 {
struct BFloat16 {
  uint16_t x;
};
}  // namespace c10

namespace at::native::cpublas {
void brgemm(int64_t M, int64_t N, int64_t K, int64_t lda, int64_t ldb, int64_t ldc, bool add,
            const c10::BFloat16* A, const c10::BFloat16* B, float* C, bool vnni);
void brgemm_release(bool vnni);
}  // namespace at::native::cpublas

namespace {

using bf16 = uint16_t;

struct View {  // (row, head, token, width), the width next to each other
  void* data;
  int64_t row, head, token;
  int64_t wide;  // whether numbers are floats, in outputs

  const bf16* at(int64_t r, int64_t h, int64_t t) const {
    return static_cast<const bf16*>(data) + r * row + h * head + t * token;
  }
  const float* wide_at(int64_t r, int64_t h, int64_t t) const {
    return static_cast<const float*>(data) + r * row + h * head + t * token;
  }
};

struct Piece {  // queries and keys of one row that see each other
  int64_t row, query, queries, key, keys;
};

struct Call {
  int64_t pieces, heads, groups, width, causal;
  float scale;
  const Piece* table;
  View grad, q, k, v, out, lse, dq, dk, dv;
};

constexpr int64_t LARGE = 128, SMALL = 64;

inline float widen(bf16 x) {
  uint32_t bits = uint32_t(x) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline bf16 narrow(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bf16((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float exponential(float x) {
  x = x < -87.f ? -87.f : x;
  x = x > 88.f ? 88.f : x;
  const float n = __builtin_rintf(x * 1.44269504088896341f);
  const float f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * f + 1.3981999507e-3f;
  y = y * f + 8.3334519073e-3f;
  y = y * f + 4.1665795894e-2f;
  y = y * f + 1.6666665459e-1f;
  y = y * f + 5.0000001201e-1f;
  y = y * f * f + f + 1.0f;
  const int32_t bits = (int32_t(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  return y * power;
}

struct Block {
  int64_t start, size;
};

// Blocks of 128, the last one of 64 where that is enough.
std::vector<Block> blocks(int64_t tokens) {
  std::vector<Block> found;
  for (int64_t at = 0; at < tokens;) {
    const int64_t size = tokens - at <= SMALL ? SMALL : LARGE;
    found.push_back({at, size});
    at += size;
  }
  return found;
}

int64_t padded(const std::vector<Block>& all) { return all.back().start + all.back().size; }

void product(int64_t M, int64_t N, int64_t K, const bf16* A, const bf16* B, float* C, bool add) {
  using c10::BFloat16;
  at::native::cpublas::brgemm(M, N, K, K, N, N, add, reinterpret_cast<const BFloat16*>(A),
                              reinterpret_cast<const BFloat16*>(B), C, true);
}

// rows x width -> the same rows in a padded block
void copy_rows(const bf16* from, int64_t stride, int64_t rows, int64_t size, int64_t width,
               bf16* to) {
  for (int64_t r = 0; r < rows; r++) std::memcpy(to + r * width, from + r * stride, width * 2);
  std::memset(to + rows * width, 0, (size - rows) * width * 2);
}

// (size, width) -> right operand of a product over the width: (width/2, size, 2)
void over_width(const bf16* from, int64_t size, int64_t width, bf16* to) {
  const int64_t half = width / 2;
  for (int64_t r = 0; r < size; r++)
    for (int64_t d = 0; d < half; d++)
      std::memcpy(to + 2 * (d * size + r), from + r * width + 2 * d, 4);
}

// (size, width) -> right operand of a product over the rows: (size/2, width, 2)
void over_rows(const bf16* __restrict from, int64_t size, int64_t width, bf16* __restrict to) {
  for (int64_t r = 0; r < size; r += 2)
    for (int64_t d = 0; d < width; d++) {
      to[r * width + 2 * d] = from[r * width + d];
      to[r * width + 2 * d + 1] = from[(r + 1) * width + d];
    }
}

void transpose(const bf16* from, int64_t size, int64_t width, bf16* to) {
  for (int64_t r = 0; r < size; r++)
    for (int64_t d = 0; d < width; d++) to[d * size + r] = from[r * width + d];
}

// Weights and gradients of scores of one row of keys.
void weights(const float* __restrict s, const float* __restrict dp, const float* __restrict lse,
             const float* __restrict drop, float scale, int64_t columns, bf16* __restrict p,
             bf16* __restrict ds) {
#pragma GCC ivdep
  for (int64_t c = 0; c < columns; c++) {
    const float w = exponential(s[c] * scale - lse[c]);
    p[c] = narrow(w);
    ds[c] = narrow(w * (dp[c] - drop[c]));
  }
}

void pairs(const bf16* __restrict one, const bf16* __restrict two, int64_t columns,
           uint32_t* __restrict to) {
#pragma GCC ivdep
  for (int64_t c = 0; c < columns; c++) to[c] = uint32_t(one[c]) | uint32_t(two[c]) << 16;
}

// A row of numbers times `scale` into an output; `step` lies between the numbers.
void store(const float* from, int64_t step, int64_t width, float scale, const View& to, int64_t row,
           int64_t head, int64_t token) {
  const int64_t at = row * to.row + head * to.head + token * to.token;
  if (to.wide) {
    float* out = static_cast<float*>(to.data) + at;
    for (int64_t d = 0; d < width; d++) out[d] = scale * from[d * step];
  } else {
    bf16* out = static_cast<bf16*>(to.data) + at;
    for (int64_t d = 0; d < width; d++) out[d] = narrow(scale * from[d * step]);
  }
}

struct Room {
  std::vector<bf16> rows, q_width, q_rows, g_width, g_rows, k, v, k_turned, p, ds, ds_pairs;
  std::vector<float> lse, drop, scores, grads, dq, dk, dv;
};

void one_group(const Call& c, const Piece& piece, int64_t group, Room& room) {
  const int64_t D = c.width, share = c.heads / c.groups;
  const auto q_blocks = blocks(piece.queries), k_blocks = blocks(piece.keys);
  const int64_t L = padded(q_blocks), K = padded(k_blocks);
  room.k.resize(K * D), room.v.resize(K * D), room.k_turned.resize(K * D);
  for (const auto& b : k_blocks) {
    const int64_t rows = std::min(b.size, piece.keys - b.start);
    copy_rows(c.k.at(piece.row, group, piece.key + b.start), c.k.token, rows, b.size, D,
              &room.k[b.start * D]);
    copy_rows(c.v.at(piece.row, group, piece.key + b.start), c.v.token, rows, b.size, D,
              &room.v[b.start * D]);
    transpose(&room.k[b.start * D], b.size, D, &room.k_turned[b.start * D]);
  }
  room.dk.assign(K * D, 0.f), room.dv.assign(K * D, 0.f);
  room.rows.resize(LARGE * D);
  for (auto* part : {&room.q_width, &room.q_rows, &room.g_width, &room.g_rows}) part->resize(L * D);
  room.lse.assign(L, 1e30f), room.drop.assign(L, 0.f);
  room.scores.resize(LARGE * LARGE), room.grads.resize(LARGE * LARGE);
  for (auto* part : {&room.p, &room.ds, &room.ds_pairs}) part->resize(LARGE * LARGE);
  for (int64_t member = 0; member < share; member++) {
    const int64_t head = group * share + member;
    const bf16* q = c.q.at(piece.row, head, piece.query);
    const bf16* g = c.grad.at(piece.row, head, piece.query);
    const bf16* o = c.out.at(piece.row, head, piece.query);
    const float* lse = c.lse.wide_at(piece.row, head, piece.query);
    for (const auto& b : q_blocks) {
      const int64_t rows = std::min(b.size, piece.queries - b.start);
      copy_rows(q + b.start * c.q.token, c.q.token, rows, b.size, D, room.rows.data());
      over_width(room.rows.data(), b.size, D, &room.q_width[b.start * D]);
      over_rows(room.rows.data(), b.size, D, &room.q_rows[b.start * D]);
      copy_rows(g + b.start * c.grad.token, c.grad.token, rows, b.size, D, room.rows.data());
      over_width(room.rows.data(), b.size, D, &room.g_width[b.start * D]);
      over_rows(room.rows.data(), b.size, D, &room.g_rows[b.start * D]);
    }
    for (int64_t i = 0; i < piece.queries; i++) {
      float sum = 0.f;
      const bf16 *gi = g + i * c.grad.token, *oi = o + i * c.out.token;
      for (int64_t d = 0; d < D; d++) sum += widen(gi[d]) * widen(oi[d]);
      room.drop[i] = sum, room.lse[i] = lse[i * c.lse.token];
    }
    room.dq.assign(L * D, 0.f);
    for (const auto& kb : k_blocks) {
      for (const auto& qb : q_blocks) {
        if (c.causal && kb.start >= qb.start + qb.size) continue;
        const int64_t at = qb.start * D;
        product(kb.size, qb.size, D, &room.k[kb.start * D], &room.q_width[at],
                room.scores.data(), false);
        product(kb.size, qb.size, D, &room.v[kb.start * D], &room.g_width[at],
                room.grads.data(), false);
        auto* joined = reinterpret_cast<uint32_t*>(room.ds_pairs.data());
        for (int64_t r = 0; r < kb.size; r++) {
          bf16 *p = &room.p[r * qb.size], *ds = &room.ds[r * qb.size];
          weights(&room.scores[r * qb.size], &room.grads[r * qb.size], &room.lse[qb.start],
                  &room.drop[qb.start], c.scale, qb.size, p, ds);
          const int64_t hidden = c.causal ? kb.start + r - qb.start : 0;
          if (hidden > 0) {
            const int64_t bytes = 2 * std::min(hidden, qb.size);
            std::memset(p, 0, bytes), std::memset(ds, 0, bytes);
          }
          if (r % 2) pairs(ds - qb.size, ds, qb.size, joined + (r / 2) * qb.size);
        }
        product(kb.size, D, qb.size, room.p.data(), &room.g_rows[at], &room.dv[kb.start * D],
                true);
        product(kb.size, D, qb.size, room.ds.data(), &room.q_rows[at], &room.dk[kb.start * D],
                true);
        product(D, qb.size, kb.size, &room.k_turned[kb.start * D], room.ds_pairs.data(),
                &room.dq[at], true);
      }
    }
    for (const auto& b : q_blocks)
      for (int64_t r = 0; r < std::min(b.size, piece.queries - b.start); r++)
        store(&room.dq[b.start * D + r], b.size, D, c.scale, c.dq, piece.row, head,
              piece.query + b.start + r);
  }
  for (int64_t i = 0; i < piece.keys; i++) {
    store(&room.dk[i * D], 1, D, c.scale, c.dk, piece.row, group, piece.key + i);
    store(&room.dv[i * D], 1, D, 1.f, c.dv, piece.row, group, piece.key + i);
  }
}

}  // namespace

// 0 where all went well; 1 where a product is not to be had on this machine.
extern "C" int attention_backward(const Call* call, int64_t threads) {
  const int64_t total = call->pieces * call->groups;
  std::atomic<int64_t> next{0};
  std::atomic<int> failed{0};
  const auto work = [&] {
    static thread_local Room room;
    try {
      for (int64_t item; (item = next++) < total && !failed;)
        one_group(*call, call->table[item / call->groups], item % call->groups, room);
      at::native::cpublas::brgemm_release(true);
    } catch (...) {
      failed = 1;
    }
  };
  std::vector<std::thread> others;
  for (int64_t i = 1; i < std::min(threads, total); i++) others.emplace_back(work);
  work();
  for (auto& other : others) other.join();
  return failed;
}
