// The pool behind csrc/threads.h.
//
// Layout: `ticket` holds the number of the call (upper half) and its next piece (lower half). Taking a piece
// is one compare-and-swap of the whole, so a helper that comes late, to a call that is over, takes nothing
// and holds nobody up; what it read about the call is valid if and only if the swap succeeds, as call numbers
// never come back. Why each helper has a bell of its own: a call wakes as many as it can use, and those wake
// two more each, so that the caller pays for two wake-ups however many cores there are.
#include "threads.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <exception>
#include <mutex>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#define FEWBIT_PTHREADS 1
#include <pthread.h>
#include <signal.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sched.h>
#include <unistd.h>
#endif

namespace fewbit {
namespace {

// Before sleeping: the time between two layers' calls, Python's included. A virtual machine can take longer
// to wake a helper than a whole product lasts (with 20 us, calls of 0.6 ms found no helper; with 200 us it
// takes half).
constexpr auto kLookFor = std::chrono::microseconds(200);
constexpr int kMostThreads = 256;

/// While it lives, threads that are started take no signals.
class SignalsBlocked {
#ifdef FEWBIT_PTHREADS
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
#endif
};

void rest() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
  __asm__ __volatile__("yield");
#endif
}

/// Waits until `value` is no longer `old`: looks for a moment, then sleeps.
void await_change(const std::atomic<uint32_t>& value, uint32_t old) {
  const auto until = std::chrono::steady_clock::now() + kLookFor;
  do {
    for (int i = 0; i < 16; ++i) {
      if (value.load(std::memory_order_acquire) != old) return;
      rest();
    }
  } while (std::chrono::steady_clock::now() < until);
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

/// The core that this thread runs on, or -1.
int current_core() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

/// Moves this thread to another core than `core`, if there is one that it may use. Linux sometimes wakes a
/// helper on its caller's core and leaves it there for seconds, while the other cores idle: they then take
/// turns and gain nothing (seen between a layer's calls with rests of 20 ms: 0.57 ms instead of 0.3).
void leave_core(int core) {
#if defined(__linux__)
  cpu_set_t all, others;
  if (core < 0 || current_core() != core || sched_getaffinity(0, sizeof all, &all) != 0) return;
  others = all;
  CPU_CLR(static_cast<size_t>(core), &others);
  if (CPU_COUNT(&others) == 0) return;
  sched_setaffinity(0, sizeof others, &others);
  sched_setaffinity(0, sizeof all, &all);
#else
  (void)core;
#endif
}

/// A thread may run where the one that started it may; helpers, where the process may: a caller that is bound
/// to a core for a while (src/fewbit/kernels/side_by_side.py) does not bind them.
void use_all_cores() {
#if defined(__linux__)
  cpu_set_t all;
  if (sched_getaffinity(getpid(), sizeof all, &all) == 0) sched_setaffinity(0, sizeof all, &all);
#endif
}

struct Helper {
  alignas(64) std::atomic<uint32_t> bell{0};
};

thread_local bool inside_a_piece = false;

void alone(int64_t pieces, PieceBody body, void* context) {
  for (int64_t piece = 0; piece < pieces; ++piece) body(context, piece, 0);
}

class Pool {
 public:
  void run(int64_t pieces, PieceBody body, void* context, int slots);

 private:
  void publish(uint32_t pieces, PieceBody body, void* context, int slots);
  void work(int slot);
  void wake_helpers_of(int slot);
  void serve(int slot);
  int start_helpers(int wanted);

  std::mutex calls_;  // held by the call that has the helpers
  int started_ = 0;
  std::array<Helper*, kMostThreads> helpers_{};  // helper of slot i at i
  alignas(64) std::atomic<uint64_t> ticket_{0};
  std::atomic<uint32_t> pieces_{0};
  std::atomic<PieceBody> body_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<int> slots_{1};
  std::atomic<int> caller_{-1};  // its core
  alignas(64) std::atomic<uint32_t> left_{0};
};

/// The call before took all its pieces. The new ticket comes before the new description, whose `pieces_`
/// comes last and is read first: who reads anything of it can no longer take a piece of an older call.
void Pool::publish(uint32_t pieces, PieceBody body, void* context, int slots) {
  pieces_.store(0, std::memory_order_release);
  const uint64_t call = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
  ticket_.store(call << 32, std::memory_order_release);
  body_.store(body, std::memory_order_release);
  context_.store(context, std::memory_order_release);
  slots_.store(slots, std::memory_order_release);
  caller_.store(current_core(), std::memory_order_relaxed);
  left_.store(pieces, std::memory_order_release);
  pieces_.store(pieces, std::memory_order_release);
}

/// Does pieces of the call there is until none is left.
void Pool::work(int slot) {
  uint64_t seen = ticket_.load(std::memory_order_acquire);
  for (;;) {
    const uint32_t piece = static_cast<uint32_t>(seen), pieces = pieces_.load(std::memory_order_acquire);
    const PieceBody body = body_.load(std::memory_order_acquire);
    void* const context = context_.load(std::memory_order_acquire);
    if (piece >= pieces || slot >= slots_.load(std::memory_order_acquire)) return;
    if (!ticket_.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) continue;
    body(context, piece, slot);
    if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) left_.notify_one();
    seen = ticket_.load(std::memory_order_acquire);
  }
}

void Pool::wake_helpers_of(int slot) {
  const int slots = slots_.load(std::memory_order_acquire);
  for (int other = 2 * slot + 1; other <= 2 * slot + 2 && other < slots; ++other) {
    std::atomic<uint32_t>& bell = helpers_[static_cast<size_t>(other)]->bell;
    bell.fetch_add(1, std::memory_order_release);
    bell.notify_one();
  }
}

void Pool::serve(int slot) {
  inside_a_piece = true;
  use_all_cores();
  const std::atomic<uint32_t>& bell = helpers_[static_cast<size_t>(slot)]->bell;
  for (uint32_t heard = 0;;) {
    await_change(bell, heard);
    heard = bell.load(std::memory_order_acquire);
    wake_helpers_of(slot);
    leave_core(caller_.load(std::memory_order_relaxed));
    work(slot);
  }
}

/// Starts helpers until there are `wanted`, or as many as the system allows; gives their number.
int Pool::start_helpers(int wanted) {
  while (started_ < wanted) {
    const SignalsBlocked blocked;  // signals are for the interpreter's threads
    const int slot = started_ + 1;
    try {
      if (helpers_[static_cast<size_t>(slot)] == nullptr) helpers_[static_cast<size_t>(slot)] = new Helper;
      std::thread([this, slot] { serve(slot); }).detach();
    } catch (const std::exception&) {
      break;
    }
    ++started_;
  }
  return started_;
}

void Pool::run(int64_t pieces, PieceBody body, void* context, int slots) {
  const std::unique_lock<std::mutex> mine(calls_, std::try_to_lock);
  const int helpers = mine.owns_lock() ? std::min(start_helpers(slots - 1), slots - 1) : 0;
  if (helpers == 0) return alone(pieces, body, context);
  publish(static_cast<uint32_t>(pieces), body, context, helpers + 1);
  wake_helpers_of(0);
  inside_a_piece = true;
  work(0);
  inside_a_piece = false;
  while (const uint32_t left = left_.load(std::memory_order_acquire)) await_change(left_, left);
}

/// A call on the threads of another runtime.
struct TeamCall {
  PieceBody body;
  void* context;
  int64_t pieces;
  std::atomic<int64_t> next{0};
  std::atomic<int> slots{0};

  static void work(void* data) {
    TeamCall& call = *static_cast<TeamCall*>(data);
    const int slot = call.slots.fetch_add(1, std::memory_order_relaxed);
    inside_a_piece = true;
    for (int64_t piece; (piece = call.next.fetch_add(1, std::memory_order_relaxed)) < call.pieces;) {
      call.body(call.context, piece, slot);
    }
    inside_a_piece = false;
  }
};

std::atomic<TeamEntry> team{nullptr};

/// Never destroyed, as helpers may still look at it while the process ends.
std::atomic<Pool*> pool{nullptr};
std::atomic<int> allowed{1};

Pool& the_pool() {
  static const bool once = [] {
    pool.store(new Pool, std::memory_order_release);
#ifdef FEWBIT_PTHREADS
    // The child of a fork has the memory of the pool but not its threads; the old one is left to lie. OpenMP
    // has no threads there either, and waits for them.
    pthread_atfork(nullptr, nullptr, [] {
      pool.store(new Pool, std::memory_order_release);
      team.store(nullptr, std::memory_order_release);
    });
#endif
    return true;
  }();
  (void)once;
  return *pool.load(std::memory_order_acquire);
}

}  // namespace

void set_threads(int threads) {
  allowed.store(std::clamp(threads, 1, kMostThreads), std::memory_order_relaxed);
}

int threads() { return allowed.load(std::memory_order_relaxed); }

void set_team(TeamEntry entry) {
  the_pool();  // which has the child of a fork forget it
  team.store(entry, std::memory_order_release);
}

void run_pieces(int64_t pieces, PieceBody body, void* context, int most, bool long_enough) {
  constexpr int64_t kTicketHolds = int64_t{1} << 31;
  const int slots = static_cast<int>(std::min<int64_t>(std::min(most, kMostThreads), pieces));
  if (slots <= 1 || inside_a_piece || pieces >= kTicketHolds) return alone(pieces, body, context);
  if (const TeamEntry entry = team.load(std::memory_order_acquire); long_enough && entry != nullptr) {
    TeamCall call{body, context, pieces};
    return entry(&TeamCall::work, &call, static_cast<unsigned>(slots), 0);
  }
  the_pool().run(pieces, body, context, slots);
}

}  // namespace fewbit
