// The selective scan over images and sequences on the CPU, forward and backward; called through ctypes by cpu.py.
//
// A vector lane is a channel (channels are last in memory). A task walks along a direction's pixels in chunks of
// CHUNK steps; within a chunk it takes its blocks of W channels in turn, the n states of a block in registers. So B, C
// and the step-size features of a chunk are read once for all blocks, and every row of a pixel is read whole. Step
// sizes are made in the chunk: nothing of size channels x length x n ever exists. The backward recomputes a chunk's
// states from the state before it, which the forward has kept, TILE of them at a time: what it then needs fits the
// first-level cache. Every sum runs in a fixed order.
//
// A "stream" is one scan with its own parameters: a direction over all channels of an image, or a group of channels
// of a sequence (an image of height 1). Only float32 enters; cpu.py converts.

#include <pthread.h>

#include <atomic>
#include <cstdlib>

#include "scan_simd.h"

namespace {

constexpr int CHUNK = 64;
constexpr int TILE = 4;  // states whose backward pass stays in registers and in the first-level cache
constexpr int PAD = 16;  // the saved states are padded to this many channels whatever W is
constexpr float LOG2E = 1.44269504088896341f;

struct Problem {  // mirrored by cpu.py; all counts in elements
    int64_t batch, height, width;
    int64_t pixel_channels;   // channels of one pixel of x
    int64_t stream_channels;  // channels a stream scans, starting at stream * stream_offset
    int64_t stream_offset;
    int64_t streams, states, rank, softplus;
    int64_t split;   // streams are tasks of their own; where they share channels each has its own output
    int64_t parts;   // runs of images; backward: each has its own grad_parameters
    int64_t groups;  // tasks the blocks of channels are divided among; backward: each has its own grad_proj
    int64_t threads;
    const int64_t* directions;                        // one a stream: 0 rows, 1 columns, 2 and 3 backwards
    const float *x, *proj, *delta;                    // (b,l,c), (b,l,streams,rank+2n), (b,l,c) or null
    const float *dt_weight, *decay;                   // (streams,rank,padded), (streams,n,padded)
    const float *dt_bias, *skip;                      // (c) or null, c over all streams
    float *y, *carry;                                 // (split?,b,l,c), (b,streams,chunks,n,padded) or null
    const float* grad_y;                              // (b,l,c)
    float *grad_x, *grad_proj, *grad_delta;           // (split?,b,l,c), (groups,b,l,streams,rank+2n), (b,l,c)
    float* grad_parameters;                           // (parts,streams,rank+n+2,padded): dt_weight, decay, bias, skip
    void (*run_parallel)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel of torch's libgomp, or null

    int64_t length() const { return height * width; }
    int64_t chunks() const { return (length() + CHUNK - 1) / CHUNK; }
    int64_t blocks() const { return (stream_channels + W - 1) / W; }
    int64_t padded() const { return (stream_channels + PAD - 1) / PAD * PAD; }
    int64_t rows() const { return rank + 2 * states; }
};

// One block of W channels of one stream: its parameters, and what it carries from chunk to chunk.
struct Block {
    int lanes;          // channels in it: fewer than W at the end
    int64_t at;         // its first channel within a pixel of x
    int64_t channel;    // and within the stream
    V bias, skip, grad_bias, grad_skip;
    V *decay, *decay2, *h, *grad_decay;  // n each; h: the state, or backwards exp(s A) times the gradient of the state
    V *dt_weight, *grad_dt_weight;       // rank each
};

// One step of one block. Backwards the sums over its states, of which the gradients of x and of the step size are made.
struct Step {
    V x, size, slope, grad, to_input, to_size;
};

// What a thread works with. Vectors come first in its memory, so that all are aligned.
struct Scratch {
    void* memory = nullptr;
    Block* blocks;
    Step* steps;             // one block's chunk
    V *states, *sums, *to_z;  // backward: (chunk,2,TILE), (chunk,rows), (blocks,chunk)
    float* proj;                 // chunk rows: features, B and C of the stream
    int64_t pixel[CHUNK], next_pixel[CHUNK];  // of this chunk and of the one after it (backwards: before it)
    bool has_next = false;

    bool allocate(const Problem& p, bool backward) {
        const int64_t n = p.states, r = p.rank, chunk_rows = (CHUNK * p.rows() + W - 1) / W * W;
        const int64_t count = (p.blocks() + p.groups - 1) / p.groups;
        int64_t vectors = 6 * CHUNK + chunk_rows / W + count * (4 * n + 2 * r);
        if (backward) vectors += 2 * CHUNK * TILE + chunk_rows + count * CHUNK;
        const size_t bytes = vectors * sizeof(V) + count * sizeof(Block);
        memory = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
        if (!memory) return false;
        V* next = static_cast<V*>(memory);
        auto take = [&next](int64_t size) { V* at = next; next += size; return at; };
        steps = reinterpret_cast<Step*>(take(CHUNK * sizeof(Step) / sizeof(V)));
        proj = reinterpret_cast<float*>(take(chunk_rows / W));
        if (backward) states = take(2 * CHUNK * TILE), sums = take(chunk_rows);
        if (backward) to_z = take(count * CHUNK);
        V* of_blocks = take(count * (4 * n + 2 * r));
        blocks = reinterpret_cast<Block*>(next);
        for (int64_t i = 0; i < count; ++i) {
            V* v = of_blocks + i * (4 * n + 2 * r);
            blocks[i].decay = v, blocks[i].decay2 = v + n, blocks[i].h = v + 2 * n, blocks[i].grad_decay = v + 3 * n;
            blocks[i].dt_weight = v + 4 * n, blocks[i].grad_dt_weight = v + 4 * n + r;
        }
        return true;
    }
};

// ---- what both directions of time share ----------------------------------------------------------------------------

// Prepare block number `index` of a stream: its parameters, and zeros.
void load_block(const Problem& p, int64_t stream, int64_t index, Block& k) {
    k.channel = index * W;
    k.lanes = p.stream_channels - k.channel < W ? int(p.stream_channels - k.channel) : W;
    k.at = stream * p.stream_offset + k.channel;
    const int64_t parameter = stream * p.stream_channels + k.channel;
    for (int64_t i = 0; i < p.states; ++i) {
        k.decay[i] = load(p.decay + (stream * p.states + i) * p.padded() + k.channel);
        k.decay2[i] = k.decay[i] * LOG2E;
        k.h[i] = V{};
    }
    for (int64_t i = 0; i < p.rank; ++i)
        k.dt_weight[i] = load(p.dt_weight + (stream * p.rank + i) * p.padded() + k.channel);
    k.bias = p.dt_bias ? load(p.dt_bias + parameter, k.lanes) : V{};
    k.skip = p.skip ? load(p.skip + parameter, k.lanes) : V{};
}

int64_t pixel_at(const Problem& p, int64_t direction, int64_t t) {
    const int64_t at = direction >= 2 ? p.length() - 1 - t : t;
    return direction & 1 ? at % p.height * p.width + at / p.height : at;
}

// Find the pixels of a chunk in the order of travel and read their features, B and C. Returns the number of steps.
int load_chunk(const Problem& p, int64_t b, int64_t stream, int64_t chunk, int64_t next, Scratch& s) {
    const int64_t length = p.length(), direction = p.directions[stream], rows = p.rows(), start = chunk * CHUNK;
    const int count = length - start < CHUNK ? int(length - start) : CHUNK;
    for (int t = 0; t < count; ++t) {
        // Where the chunk before this one (of the same stream) has looked ahead, the pixels are known.
        s.pixel[t] = s.has_next ? s.next_pixel[t] : b * length + pixel_at(p, direction, start + t);
        std::memcpy(s.proj + t * rows, p.proj + (s.pixel[t] * p.streams + stream) * rows, rows * sizeof(float));
    }
    s.has_next = next >= 0 && next < p.chunks();
    for (int t = 0; s.has_next && t < CHUNK; ++t) {
        const int64_t at = next * CHUNK + t;
        s.next_pixel[t] = b * length + pixel_at(p, direction, at < length ? at : length - 1);
    }
    return count;
}

// Large images lie in main memory, and along columns every step is on another page, which no hardware prefetcher
// foresees. So each step asks for what the same step of the next chunk will read: its part of x and of the output, and
// (the blocks share the work) of the features, B and C.
INLINE void prefetch_step(const Problem& p, int64_t stream, const Block& k, int64_t block, int64_t blocks, int t,
                          const float* out, const Scratch& s) {
    if (!s.has_next) return;
    const int64_t at = s.next_pixel[t] * p.pixel_channels + k.at, rows = p.rows();
    __builtin_prefetch(p.x + at);
    __builtin_prefetch(out + at, 1);
    if (p.grad_y) __builtin_prefetch(p.grad_y + at);
    const float* proj = p.proj + (s.next_pixel[t] * p.streams + stream) * rows;
    for (int64_t i = block * 16; i < rows; i += blocks * 16) __builtin_prefetch(proj + i);
}

// Read a block's inputs of the chunk and make its step sizes; for the backward also softplus's derivatives.
template <bool backward>
void load_steps(const Problem& p, const Block& k, int count, Scratch& s) {
    constexpr int T = 8;  // steps that share one reading of the weights
    const int64_t rows = p.rows();
    for (int start = 0; start < count; start += T) {
        const int steps = count - start < T ? count - start : T;
        V z[T];
        for (int t = 0; t < T; ++t) z[t] = k.bias;
        for (int t = 0; t < steps; ++t) {
            const int64_t at = s.pixel[start + t] * p.pixel_channels + k.at;
            s.steps[start + t].x = load(p.x + at, k.lanes);
            if (p.delta) z[t] += load(p.delta + at, k.lanes);
        }
        const float* low_rank = s.proj + start * rows;  // of steps behind the last one: old numbers, never used
        for (int64_t i = 0; i < p.rank; ++i)
#pragma GCC unroll 8
            for (int t = 0; t < T; ++t) z[t] += k.dt_weight[i] * low_rank[t * rows + i];
        for (int t = start; t < start + steps; ++t) {
            if (backward) s.steps[t].slope = splat(1.0f);
            s.steps[t].size = p.softplus ? softplus<backward>(z[t - start], s.steps[t].slope) : z[t - start];
        }
    }
}

float* carry_at(const Problem& p, int64_t b, int64_t stream, int64_t chunk, const Block& k) {
    return p.carry + ((b * p.streams + stream) * p.chunks() + chunk) * p.states * p.padded() + k.channel;
}

// ---- forward -------------------------------------------------------------------------------------------------------
// N is the number of states where it is known to the compiler (they then live in registers), otherwise 0.

template <int N>
void forward_steps(const Problem& p, int64_t stream, int64_t block, int64_t blocks, int count, Scratch& s, float* y,
                   bool add) {
    Block& k = s.blocks[block];
    const int64_t n = N ? N : p.states, rows = p.rows();
    V registers[N ? N : 1];
    V* h = N ? registers : k.h;
    if (N)
        for (int64_t i = 0; i < n; ++i) h[i] = k.h[i];
    for (int t = 0; t < count; ++t) {
        prefetch_step(p, stream, k, block, blocks, t, y, s);
        const float *B = s.proj + t * rows + p.rank, *C = B + n;
        const V step = s.steps[t].size, input = step * s.steps[t].x;
        V sum[2] = {k.skip * s.steps[t].x, V{}};  // two sums: one would wait for itself
#pragma GCC unroll 16
        for (int64_t i = 0; i < n; ++i) {
            h[i] = exp2v(step * k.decay2[i]) * h[i] + input * B[i];
            sum[i & 1] += h[i] * C[i];
        }
        float* out = y + s.pixel[t] * p.pixel_channels + k.at;
        const V total = sum[0] + sum[1];
        store(out, add ? load(out, k.lanes) + total : total, k.lanes);
    }
    if (N)
        for (int64_t i = 0; i < n; ++i) k.h[i] = h[i];
}

template <int N>
void forward_stream(const Problem& p, int64_t b, int64_t stream, int64_t blocks, Scratch& s, float* y, bool add) {
    for (int64_t chunk = 0; chunk < p.chunks(); ++chunk) {
        const int count = load_chunk(p, b, stream, chunk, chunk + 1, s);
        for (int64_t j = 0; j < blocks; ++j) {
            Block& k = s.blocks[j];
            if (p.carry)
                for (int64_t i = 0; i < p.states; ++i) store(carry_at(p, b, stream, chunk, k) + i * p.padded(), k.h[i]);
            load_steps<false>(p, k, count, s);
            forward_steps<N>(p, stream, j, blocks, count, s, y, add);
        }
    }
}

// ---- backward ------------------------------------------------------------------------------------------------------

// The steps of a chunk for the states from `first` on, T of them: first forwards, to have the states again, then
// backwards. q holds exp(s_{t+1} A) q_{t+1} and receives the same of t, with q_t the gradient of h_t. What is summed over
// channels (for B and C) is added to s.sums, one vector a number; what is summed over states to the steps.
template <int T>
void backward_tile(const Problem& p, Block& k, int64_t first, int count, Scratch& s, const float* carry, bool fresh) {
    const int64_t n = p.states, rows = p.rows();
    V q[T], after[T], decay[T], decay2[T], grad_decay[T];
    for (int i = 0; i < T; ++i) {
        after[i] = load(carry + (first + i) * p.padded());
        q[i] = k.h[first + i], decay[i] = k.decay[first + i], decay2[i] = k.decay2[first + i], grad_decay[i] = V{};
    }
    const float* B = s.proj + p.rank + first;
    V *state = s.states, *sums = s.sums + p.rank + first;
    Step* step = s.steps;
    for (int t = 0; t < count; ++t, B += rows, state += 2 * T, sums += rows, ++step) {
        const V size = step->size, input = size * step->x;
#pragma GCC unroll 4
        for (int i = 0; i < T; ++i) {
            state[i] = after[i], state[T + i] = exp2v(size * decay2[i]);
            after[i] = state[T + i] * after[i] + input * B[i];
        }
    }
    for (int t = 0; t < count; ++t) {
        B -= rows, state -= 2 * T, sums -= rows, --step;
        const V grad = step->grad, size = step->size, input = size * step->x;
        V to_input = first ? step->to_input : V{}, to_size = first ? step->to_size : V{};
#pragma GCC unroll 4
        for (int i = 0; i < T; ++i) {
            const V g = grad * B[n + i] + q[i];
            sums[i] = fresh ? g * input : sums[i] + g * input;
            sums[n + i] = fresh ? grad * after[i] : sums[n + i] + grad * after[i];
            to_input += g * B[i];
            q[i] = state[T + i] * g;
            after[i] = state[i];
            const V to_exponent = q[i] * after[i];
            to_size += to_exponent * decay[i];
            grad_decay[i] += to_exponent * size;
        }
        step->to_input = to_input, step->to_size = to_size;
    }
    for (int i = 0; i < T; ++i) k.h[first + i] = q[i], k.grad_decay[first + i] = grad_decay[i];
}

// A chunk of one block backwards: its states tile by tile, then the gradients of x and of the step sizes.
template <int T>
void backward_steps(const Problem& p, int64_t stream, int64_t block, int64_t blocks, int count, Scratch& s,
                    const float* carry, float* grad_x, bool add) {
    Block& k = s.blocks[block];
    for (int64_t i = 0; i < p.states; i += T) backward_tile<T>(p, k, i, count, s, carry, block == 0);
    V* to_z = s.to_z + block * CHUNK;
    for (int t = 0; t < count; ++t) {
        const int64_t at = s.pixel[t] * p.pixel_channels + k.at;
        const Step& step = s.steps[t];
        prefetch_step(p, stream, k, block, blocks, t, grad_x, s);
        const V to_x = step.to_input * step.size + k.skip * step.grad;
        store(grad_x + at, add ? load(grad_x + at, k.lanes) + to_x : to_x, k.lanes);
        k.grad_skip += step.grad * step.x;
        to_z[t] = (step.to_size + step.to_input * step.x) * step.slope;
        k.grad_bias += to_z[t];
        if (p.grad_delta) store(p.grad_delta + at, to_z[t], k.lanes);
    }
    for (int64_t i = 0; i < p.rank; i += TILE) {
        const int64_t width = p.rank - i < TILE ? p.rank - i : TILE;
        V sums[TILE] = {};
        const float* low_rank = s.proj + i;
        for (int t = 0; t < count; ++t, low_rank += p.rows())
#pragma GCC unroll 4
            for (int j = 0; j < TILE; ++j) sums[j] += to_z[t] * low_rank[j];  // behind the features B follows
        for (int64_t j = 0; j < width; ++j) k.grad_dt_weight[i + j] = sums[j];
    }
}

// The gradient of a chunk's features: over all blocks, a number a vector as in s.sums.
void sum_features(const Problem& p, int64_t blocks, int count, Scratch& s) {
    constexpr int T = 4;
    const int64_t rows = p.rows();
    for (int64_t i = 0; i < p.rank; i += TILE) {
        const int64_t width = p.rank - i < TILE ? p.rank - i : TILE;
        for (int start = 0; start < count; start += T) {
            V sums[T][TILE] = {};
            for (int64_t j = 0; j < blocks; ++j) {
                const V *weight = s.blocks[j].dt_weight + i, *to_z = s.to_z + j * CHUNK + start;
#pragma GCC unroll 4
                for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
                    for (int l = 0; l < TILE; ++l) sums[t][l] += to_z[t] * weight[l];
            }
            for (int t = 0; t < T && start + t < count; ++t)
                for (int64_t l = 0; l < width; ++l) s.sums[(start + t) * rows + i + l] = sums[t][l];
        }
    }
}

// Gradients of a block's parameters, summed chunk by chunk: two short sums round less than one long one.
void add_parameter_gradients(const Problem& p, int64_t part, int64_t stream, bool first, const Block& k) {
    const int64_t n = p.states, r = p.rank;
    float* out = p.grad_parameters + (part * p.streams + stream) * (r + n + 2) * p.padded() + k.channel;
    auto add = [&](int64_t row, V value) {
        float* at = out + row * p.padded();
        store(at, first ? value : load(at) + value);
    };
    for (int64_t i = 0; i < r; ++i) add(i, k.grad_dt_weight[i]);
    for (int64_t i = 0; i < n; ++i) add(r + i, k.grad_decay[i]);
    add(r + n, k.grad_bias);
    add(r + n + 1, k.grad_skip);
}

void backward_stream(const Problem& p, int64_t part, int64_t b, bool first_image, int64_t stream, int64_t blocks, Scratch& s, float* grad_x, bool add,
                     float* grad_proj) {
    const int64_t rows = p.rows();
    const auto steps = p.states % TILE ? backward_steps<1> : backward_steps<TILE>;
    for (int64_t chunk = p.chunks() - 1; chunk >= 0; --chunk) {
        const int count = load_chunk(p, b, stream, chunk, chunk - 1, s);
        for (int64_t j = 0; j < blocks; ++j) {
            Block& k = s.blocks[j];
            load_steps<true>(p, k, count, s);
            for (int t = 0; t < count; ++t) s.steps[t].grad = load(p.grad_y + s.pixel[t] * p.pixel_channels + k.at, k.lanes);
            k.grad_bias = k.grad_skip = V{};
            steps(p, stream, j, blocks, count, s, carry_at(p, b, stream, chunk, k), grad_x, add);
            add_parameter_gradients(p, part, stream, first_image && chunk == p.chunks() - 1, k);
        }
        sum_features(p, blocks, count, s);
        float* reduced = s.proj;  // its contents have served
        for (int64_t i = 0; i < count * rows; i += W) store(reduced + i, lane_sums(s.sums + i));
        for (int t = 0; t < count; ++t)
            std::memcpy(grad_proj + (s.pixel[t] * p.streams + stream) * rows, reduced + t * rows, rows * sizeof(float));
    }
}

// ---- tasks ---------------------------------------------------------------------------------------------------------

struct Work {
    const Problem& p;
    bool backward;
    int64_t tasks;
    std::atomic<int64_t> next{0};
    std::atomic<bool> out_of_memory{false};
};

// A task owns a run of images, a run of blocks, and all streams (one after another) or one of them.
template <int N>
void do_task(const Problem& p, bool backward, int64_t task, Scratch& s) {
    const int64_t group = task % p.groups, rest = task / p.groups;
    const int64_t part = p.split ? rest / p.streams : rest;
    const int64_t first = p.split ? rest % p.streams : 0, last = p.split ? first + 1 : p.streams;
    const int64_t begin = p.blocks() * group / p.groups, blocks = p.blocks() * (group + 1) / p.groups - begin;
    const int64_t from = p.batch * part / p.parts, until = p.batch * (part + 1) / p.parts;
    const bool shared = p.stream_offset == 0;  // all streams add to the same channels
    for (int64_t stream = first; stream < last; ++stream) {
        const int64_t image = p.split && shared ? stream * p.batch * p.length() * p.pixel_channels : 0;
        const bool add = shared && stream > first;
        for (int64_t b = from; b < until; ++b) {
            for (int64_t j = 0; j < blocks; ++j) load_block(p, stream, begin + j, s.blocks[j]);
            if (backward)
                backward_stream(p, part, b, b == from, stream, blocks, s, p.grad_x + image, add,
                                p.grad_proj + group * p.batch * p.length() * p.streams * p.rows());
            else
                forward_stream<N>(p, b, stream, blocks, s, p.y + image, add);
        }
    }
}

template <int N>
void work_through(Work& work) {
    Scratch scratch;
    if (!scratch.allocate(work.p, work.backward)) {
        work.out_of_memory = true;
        return;
    }
    for (int64_t task; (task = work.next++) < work.tasks;) do_task<N>(work.p, work.backward, task, scratch);
    std::free(scratch.memory);
}

void thread_body(void* argument) {
    Work& work = *static_cast<Work*>(argument);
    switch (work.p.states) {
        case 1: return work_through<1>(work);
        case 16: return work_through<16>(work);
        default: return work_through<0>(work);
    }
}

void* pthread_body(void* argument) {
    thread_body(argument);
    return nullptr;
}

// torch's own OpenMP threads where it has them (they are awake; a second pool would fight them for the cores),
// otherwise threads of this call alone: none outlives it, so a fork at any other time is harmless.
int run(Work& work) {
    const int64_t threads = work.p.threads < work.tasks ? work.p.threads : work.tasks;
    if (threads <= 1) {
        thread_body(&work);
    } else if (work.p.run_parallel) {
        work.p.run_parallel(thread_body, &work, unsigned(threads), 0);
    } else {
        pthread_t* others = static_cast<pthread_t*>(std::malloc((threads - 1) * sizeof(pthread_t)));
        int64_t started = 0;
        while (others && started < threads - 1 && !pthread_create(others + started, nullptr, pthread_body, &work)) ++started;
        thread_body(&work);
        for (int64_t i = 0; i < started; ++i) pthread_join(others[i], nullptr);
        std::free(others);
    }
    return work.out_of_memory ? 1 : 0;
}

// Exponentials alone, over and over in the first-level cache: what the machine can do at most (`bench ops`).
struct ExpLoop {
    int64_t rounds;
    std::atomic<int64_t> next{0};
    float sums[256];
};

void exp_body(void* argument) {
    ExpLoop& loop = *static_cast<ExpLoop*>(argument);
    V values[64];
    for (int i = 0; i < 64; ++i) values[i] = splat(-0.01f * i);
    for (int64_t round = 0; round < loop.rounds; ++round)
        for (int i = 0; i < 64; ++i) values[i] = exp2v(-values[i]);
    float sum = 0;  // kept, so that the loop is not removed
    for (int i = 0; i < 64; ++i) sum += values[i][0];
    loop.sums[loop.next++ % 256] = sum;
}

}  // namespace

extern "C" {

// Returns the exponentials evaluated by one call on `threads` threads of run_parallel (on one, if that is null).
int64_t medbench_exp_loop(int64_t rounds, int64_t threads, void (*run_parallel)(void (*)(void*), void*, unsigned, unsigned)) {
    ExpLoop loop{rounds};
    if (run_parallel && threads > 1)
        run_parallel(exp_body, &loop, unsigned(threads), 0);
    else
        exp_body(&loop), threads = 1;
    return rounds * 64 * W * threads;
}

int64_t medbench_scan_problem_size() { return sizeof(Problem); }

int64_t medbench_scan_blocks(int64_t channels) { return (channels + W - 1) / W; }

const char* medbench_scan_version() { return MEDBENCH_SCAN_KEY; }

int medbench_scan(const Problem* p, int backward) {
    Work work{*p, backward != 0, p->parts * p->groups * (p->split ? p->streams : 1)};
    return run(work);
}
}
