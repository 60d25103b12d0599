// One pool of threads for every kernel: work is cut into small pieces, and a core takes the next one when it
// is free.
//
// Layout: `parallel_for(pieces, body)` calls body(piece, slot) once for each piece from 0 to pieces - 1, on
// the calling thread (slot 0) and on sleeping helpers (slots from 1 to threads() - 1); two calls that run at
// the same time have different slots, so that a slot can own scratch memory. Cost: about 2 us a call on top
// of the work when the helpers are still awake, a wake-up of the operating system when they are not; a
// hundred nanoseconds a piece. A piece should be worth 10 us or more. Why pieces and no fixed split: the
// caller never waits for a helper that has not begun, only for pieces that have been taken; a core that other
// programs use then costs its own speed and no more. Nobody spins at a barrier: helpers and the caller look
// for a fifth of a millisecond at most and then sleep. Why results do not depend on the number of threads:
// what a piece computes is a function of its number alone. So a kernel must choose its pieces from shapes,
// never from threads(), and add up what pieces computed in their order. A call from inside a piece, and a
// call while another thread's call is running, runs on the calling thread alone. After fork() the child
// starts helpers of its own. Long calls (products of several rows) run on the threads of the OpenMP runtime
// that the tensor library uses, where there is one: those wait for its next loop by spinning, some
// milliseconds long, and a helper beside them would get half of a core, in slices longer than the whole call.
#pragma once

#include <cstdint>

namespace fewbit {

/// Called with the context, a piece and the slot that runs it. Must not throw.
using PieceBody = void (*)(void* context, int64_t piece, int slot);

/// Threads that a call may use from now on, the caller included: at least 1.
void set_threads(int threads);
int threads();

/// GOMP_parallel, which every OpenMP runtime for C has: calls function(data) on so many threads and waits.
using TeamEntry = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);
void set_team(TeamEntry entry);

/// Returns when every piece is done; what the pieces wrote is then visible to the caller. Slots are below
/// `most`. `long_enough`: for the team, if there is one.
void run_pieces(int64_t pieces, PieceBody body, void* context, int most, bool long_enough = false);

namespace {  // a template must not be shared between instruction sets (csrc/kernels.cpp)

/// Calls body(piece, slot) for each piece. Who keeps scratch for each slot makes it for `most` of them
/// beforehand.
template <class Body>
void parallel_for(int64_t pieces, const Body& body, int most = threads(), bool long_enough = false) {
  const PieceBody call = [](void* context, int64_t piece, int slot) {
    (*static_cast<const Body*>(context))(piece, slot);
  };
  run_pieces(pieces, call, const_cast<void*>(static_cast<const void*>(&body)), most, long_enough);
}

}  // namespace
}  // namespace fewbit
