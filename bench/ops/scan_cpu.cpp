// The selective scan over images and sequences on the CPU, forward and backward; called through ctypes by cpu.py.
//
// A vector lane is a channel (channels are last in memory); the n states of W channels stay in registers or the
// first-level cache while a thread walks along a direction's pixels in chunks of CHUNK. Step sizes are made in the
// chunk, so nothing of size channels x length x n ever exists. The backward recomputes a chunk's states from the
// state before it, which the forward has kept. All sums run in an order given by the shapes alone: results do not
// depend on the number of threads.
//
// A "stream" is one scan with its own parameters: a direction over all channels of an image, or a group of channels
// of a sequence (an image of height 1). Only float32 enters; cpu.py converts.

#include <pthread.h>

#include <atomic>
#include <cstdlib>

#include "scan_simd.h"

namespace {

constexpr int CHUNK = 64;
constexpr int PAD = 16;  // the saved states are padded to this many channels whatever W is
constexpr float LOG2E = 1.44269504088896341f;

struct Problem {  // mirrored by cpu.py; all counts in elements
    int64_t batch, height, width;
    int64_t pixel_channels;   // channels of one pixel of x
    int64_t stream_channels;  // channels a stream scans, starting at stream * stream_offset
    int64_t stream_offset;
    int64_t streams, states, rank, softplus;
    int64_t split;   // streams are separate tasks with outputs of their own
    int64_t groups;  // backward: tasks the channel blocks are divided among
    int64_t threads;
    const int64_t* directions;                      // one a stream: 0 rows, 1 columns, 2 and 3 backwards
    const float *x, *proj, *delta;                  // (b,l,c), (b,l,streams,rank+2n), (b,l,c) or null
    const float *dt_weight, *dt_bias, *decay, *skip;  // (c,rank), (c) or null, (c,n), (c) or null, c over all streams
    float *y, *carry;                               // (split?,b,l,c), (b,streams,chunks,n,padded) or null
    const float* grad_y;                            // (b,l,c)
    float *grad_x, *grad_proj, *grad_delta;         // (split?,b,l,c), (groups,b,l,streams,rank+2n), (b,l,c)
    float* grad_parameters;                         // (b,streams,rank+n+2,padded): dt_weight, decay, bias, skip
    void (*run_parallel)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel of torch's libgomp, or null

    int64_t length() const { return height * width; }
    int64_t chunks() const { return (length() + CHUNK - 1) / CHUNK; }
    int64_t blocks() const { return (stream_channels + W - 1) / W; }
    int64_t padded() const { return (stream_channels + PAD - 1) / PAD * PAD; }
    int64_t rows() const { return rank + 2 * states; }
    float* carry_at(int64_t b, int64_t stream, int64_t chunk, int64_t channel) const {
        return carry + (((b * streams + stream) * chunks() + chunk) * states * padded()) + channel;
    }
};

// The scratch of one task. Vectors first: every array is aligned to a vector.
struct Scratch {
    V *x, *step, *slope, *grad, *h, *decay, *decay2, *dt_weight;  // chunk, chunk, chunk, chunk, n, n, n, rank
    V *states, *factors, *sums, *grad_decay, *grad_dt_weight;     // backward: (chunk+1)n, chunk n, chunk rows, n, rank
    V bias, skip, grad_bias, grad_skip;
    float *proj, *reduced;  // chunk rows, each
    int64_t pixel[CHUNK];
};

bool allocate(const Problem& p, bool backward, Scratch& s, void*& memory) {
    const int64_t n = p.states, r = p.rank, rows = p.rows();
    const int64_t row_vectors = (CHUNK * rows + W - 1) / W + 1;
    int64_t vectors = 4 * CHUNK + 3 * n + r + row_vectors;
    if (backward) vectors += (2 * CHUNK + 1) * n + CHUNK * rows + W + n + r + row_vectors;
    memory = std::aligned_alloc(64, (vectors * sizeof(V) + 63) / 64 * 64);
    if (!memory) return false;
    V* next = static_cast<V*>(memory);
    auto take = [&next](int64_t count) { V* at = next; next += count; return at; };
    s.x = take(CHUNK), s.step = take(CHUNK), s.slope = take(CHUNK), s.grad = take(CHUNK);
    s.h = take(n), s.decay = take(n), s.decay2 = take(n), s.dt_weight = take(r);
    s.proj = reinterpret_cast<float*>(take(row_vectors));
    if (backward) {
        s.states = take((CHUNK + 1) * n), s.factors = take(CHUNK * n), s.sums = take(CHUNK * rows + W);
        s.grad_decay = take(n), s.grad_dt_weight = take(r);
        s.reduced = reinterpret_cast<float*>(take(row_vectors));
    }
    return true;
}

// Where a task is: a batch item, a stream and W of its channels.
struct Place {
    int64_t b, stream, channel;  // channel: first of the block, within the stream
    int lanes;
    int64_t at;      // the block's first channel within a pixel of x
    int64_t parameter;  // and among the parameters of all streams
    Place(const Problem& p, int64_t b, int64_t stream, int64_t block)
        : b(b), stream(stream), channel(block * W),
          lanes(p.stream_channels - channel < W ? int(p.stream_channels - channel) : W),
          at(stream * p.stream_offset + channel), parameter(stream * p.stream_channels + channel) {}
};

V gather(const float* p, int64_t stride, int lanes) {
    V v{};
    for (int i = 0; i < lanes; ++i) v[i] = p[i * stride];
    return v;
}

void load_parameters(const Problem& p, const Place& o, Scratch& s) {
    for (int64_t i = 0; i < p.states; ++i) {
        s.decay[i] = gather(p.decay + o.parameter * p.states + i, p.states, o.lanes);
        s.decay2[i] = s.decay[i] * LOG2E;
    }
    for (int64_t i = 0; i < p.rank; ++i) s.dt_weight[i] = gather(p.dt_weight + o.parameter * p.rank + i, p.rank, o.lanes);
    s.bias = p.dt_bias ? load(p.dt_bias + o.parameter, o.lanes) : V{};
    s.skip = p.skip ? load(p.skip + o.parameter, o.lanes) : V{};
}

// Read a chunk in the order of travel and make its step sizes. Returns its number of steps.
int load_chunk(const Problem& p, const Place& o, int64_t chunk, Scratch& s) {
    const int64_t length = p.length(), start = chunk * CHUNK, direction = p.directions[o.stream];
    const int count = length - start < CHUNK ? int(length - start) : CHUNK;
    const int64_t rows = p.rows(), proj_pixel = p.streams * rows;
    for (int t = 0; t < count; ++t) {
        int64_t at = direction >= 2 ? length - 1 - (start + t) : start + t;
        s.pixel[t] = o.b * length + (direction & 1 ? at % p.height * p.width + at / p.height : at);
    }
    for (int t = 0; t < count; ++t) {
        s.x[t] = load(p.x + s.pixel[t] * p.pixel_channels + o.at, o.lanes);
        std::memcpy(s.proj + t * rows, p.proj + s.pixel[t] * proj_pixel + o.stream * rows, rows * sizeof(float));
    }
    for (int t = 0; t < count; ++t) {
        V z = s.bias;
        if (p.delta) z += load(p.delta + s.pixel[t] * p.pixel_channels + o.at, o.lanes);
        const float* low_rank = s.proj + t * rows;
        for (int64_t i = 0; i < p.rank; ++i) z += s.dt_weight[i] * low_rank[i];
        s.slope[t] = splat(1.0f);
        s.step[t] = p.softplus ? softplus(z, s.slope[t]) : z;
    }
    return count;
}

// N is the number of states where it is known to the compiler (h then lives in registers), otherwise 0.
template <int N>
void forward_block(const Problem& p, const Place& o, Scratch& s, float* y, bool add) {
    const int64_t n = N ? N : p.states, rows = p.rows();
    load_parameters(p, o, s);
    V registers[N ? N : 1];
    V* h = N ? registers : s.h;
    for (int64_t i = 0; i < n; ++i) h[i] = V{};
    for (int64_t chunk = 0; chunk < p.chunks(); ++chunk) {
        if (p.carry)
            for (int64_t i = 0; i < n; ++i) store(p.carry_at(o.b, o.stream, chunk, o.channel) + i * p.padded(), h[i]);
        const int count = load_chunk(p, o, chunk, s);
        for (int t = 0; t < count; ++t) {
            const float *B = s.proj + t * rows + p.rank, *C = B + n;
            const V step = s.step[t], input = step * s.x[t];
            V sum[2] = {s.skip * s.x[t], V{}};  // two sums: one would wait for itself
#pragma GCC unroll 16
            for (int64_t i = 0; i < n; ++i) {
                h[i] = exp2v(step * s.decay2[i]) * h[i] + input * B[i];
                sum[i & 1] += h[i] * C[i];
            }
            float* out = y + s.pixel[t] * p.pixel_channels + o.at;
            V total = sum[0] + sum[1];
            store(out, add ? load(out, o.lanes) + total : total, o.lanes);
        }
    }
}

// The states after every step of a chunk (the first is the one before it), and the factors exp(s A).
template <int N>
void recompute_states(const Problem& p, const Place& o, int64_t chunk, int count, Scratch& s) {
    const int64_t n = N ? N : p.states, rows = p.rows();
    for (int64_t i = 0; i < n; ++i) s.states[i] = load(p.carry_at(o.b, o.stream, chunk, o.channel) + i * p.padded());
    for (int t = 0; t < count; ++t) {
        const float* B = s.proj + t * rows + p.rank;
        const V step = s.step[t], input = step * s.x[t];
        const V* before = s.states + t * n;
        V *after = s.states + (t + 1) * n, *factor = s.factors + t * n;
#pragma GCC unroll 16
        for (int64_t i = 0; i < n; ++i) {
            factor[i] = exp2v(step * s.decay2[i]);
            after[i] = factor[i] * before[i] + input * B[i];
        }
    }
}

// One step backwards. q holds exp(s_{t+1} A) q_{t+1} and receives the same of t, with q_t the gradient of h_t.
// What must be summed over channels (for the step's features, B and C) goes to sums, one vector a number.
template <int N>
INLINE void backward_step(const Problem& p, const Place& o, int t, V* q, Scratch& s, float* grad_x, bool add) {
    const int64_t n = N ? N : p.states, rows = p.rows();
    const float *low_rank = s.proj + t * rows, *B = low_rank + p.rank, *C = B + n;
    const V *before = s.states + t * n, *after = before + n, *factor = s.factors + t * n;
    V *sums = s.sums + t * rows, *sums_B = sums + p.rank, *sums_C = sums_B + n;
    const V grad = s.grad[t], x = s.x[t], step = s.step[t], input = step * x;
    V to_input{}, to_step{};
#pragma GCC unroll 16
    for (int64_t i = 0; i < n; ++i) {
        const V g = grad * C[i] + q[i];
        sums_B[i] = g * input;
        sums_C[i] = grad * after[i];
        to_input += g * B[i];
        q[i] = factor[i] * g;
        const V to_exponent = q[i] * before[i];
        to_step += to_exponent * s.decay[i];
        s.grad_decay[i] += to_exponent * step;
    }
    float* out = grad_x + s.pixel[t] * p.pixel_channels + o.at;
    const V to_x = to_input * step + s.skip * grad;
    store(out, add ? load(out, o.lanes) + to_x : to_x, o.lanes);
    s.grad_skip += grad * x;
    const V to_z = (to_step + to_input * x) * s.slope[t];
    s.grad_bias += to_z;
    for (int64_t i = 0; i < p.rank; ++i) {
        sums[i] = to_z * s.dt_weight[i];
        s.grad_dt_weight[i] += to_z * low_rank[i];
    }
    if (p.grad_delta) store(p.grad_delta + s.pixel[t] * p.pixel_channels + o.at, to_z, o.lanes);
}

// Gradients of a block's parameters, summed chunk by chunk: two short sums round less than one long one.
void add_parameter_gradients(const Problem& p, const Place& o, bool first, Scratch& s) {
    const int64_t n = p.states, r = p.rank;
    float* out = p.grad_parameters + (o.b * p.streams + o.stream) * (r + n + 2) * p.padded() + o.channel;
    auto add = [&](int64_t row, V value) {
        float* at = out + row * p.padded();
        store(at, first ? value : load(at) + value);
    };
    for (int64_t i = 0; i < r; ++i) add(i, s.grad_dt_weight[i]);
    for (int64_t i = 0; i < n; ++i) add(r + i, s.grad_decay[i]);
    add(r + n, s.grad_bias);
    add(r + n + 1, s.grad_skip);
}

template <int N>
void backward_block(const Problem& p, const Place& o, Scratch& s, float* grad_x, bool add_x, float* grad_proj, bool add_proj) {
    const int64_t n = N ? N : p.states, rows = p.rows();
    load_parameters(p, o, s);
    V registers[N ? N : 1];
    V* q = N ? registers : s.h;
    for (int64_t i = 0; i < n; ++i) q[i] = V{};
    for (int64_t chunk = p.chunks() - 1; chunk >= 0; --chunk) {
        const int count = load_chunk(p, o, chunk, s);
        for (int t = 0; t < count; ++t) s.grad[t] = load(p.grad_y + s.pixel[t] * p.pixel_channels + o.at, o.lanes);
        recompute_states<N>(p, o, chunk, count, s);
        for (int64_t i = 0; i < n; ++i) s.grad_decay[i] = V{};
        for (int64_t i = 0; i < p.rank; ++i) s.grad_dt_weight[i] = V{};
        s.grad_bias = s.grad_skip = V{};
        for (int t = count - 1; t >= 0; --t) backward_step<N>(p, o, t, q, s, grad_x, add_x);
        add_parameter_gradients(p, o, chunk == p.chunks() - 1, s);
        for (int64_t i = 0; i < count * rows; i += W) store(s.reduced + i, lane_sums(s.sums + i));
        for (int t = 0; t < count; ++t) {
            const float* from = s.reduced + t * rows;
            float* to = grad_proj + (s.pixel[t] * p.streams + o.stream) * rows;
            for (int64_t i = 0; i < rows; ++i) to[i] = add_proj ? to[i] + from[i] : from[i];
        }
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

// Forward: a task owns a batch item and a block of channels (of one stream, if they are split).
template <int N>
void forward_task(const Problem& p, int64_t task, Scratch& s) {
    const int64_t block = task % p.blocks(), rest = task / p.blocks();
    const int64_t b = p.split ? rest / p.streams : rest;
    const int64_t first = p.split ? rest % p.streams : 0, last = p.split ? first + 1 : p.streams;
    const bool shared = p.stream_offset == 0;  // all streams add to the same channels
    for (int64_t stream = first; stream < last; ++stream) {
        float* y = p.y + (p.split && shared ? stream * p.batch * p.length() * p.pixel_channels : 0);
        forward_block<N>(p, Place(p, b, stream, block), s, y, shared && stream > first);
    }
}

// Backward: a task owns a batch item and a run of blocks, whose sums for B, C and the features it adds up in order.
template <int N>
void backward_task(const Problem& p, int64_t task, Scratch& s) {
    const int64_t group = task % p.groups, rest = task / p.groups;
    const int64_t b = p.split ? rest / p.streams : rest;
    const int64_t first = p.split ? rest % p.streams : 0, last = p.split ? first + 1 : p.streams;
    const int64_t begin = p.blocks() * group / p.groups, end = p.blocks() * (group + 1) / p.groups;
    const bool shared = p.stream_offset == 0;
    float* grad_proj = p.grad_proj + group * p.batch * p.length() * p.streams * p.rows();
    for (int64_t block = begin; block < end; ++block)
        for (int64_t stream = first; stream < last; ++stream) {
            float* grad_x = p.grad_x + (p.split && shared ? stream * p.batch * p.length() * p.pixel_channels : 0);
            backward_block<N>(p, Place(p, b, stream, block), s, grad_x, shared && stream > first, grad_proj, block > begin);
        }
}

template <int N>
void work_through(Work& work) {
    Scratch scratch;
    void* memory;
    if (!allocate(work.p, work.backward, scratch, memory)) {
        work.out_of_memory = true;
        return;
    }
    for (int64_t task; (task = work.next++) < work.tasks;)
        work.backward ? backward_task<N>(work.p, task, scratch) : forward_task<N>(work.p, task, scratch);
    std::free(memory);
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

int medbench_scan_forward(const Problem* p) {
    Work work{*p, false, p->batch * p->blocks() * (p->split ? p->streams : 1)};
    return run(work);
}

int medbench_scan_backward(const Problem* p) {
    Work work{*p, true, p->batch * p->groups * (p->split ? p->streams : 1)};
    return run(work);
}
}
