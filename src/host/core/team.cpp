#include "detail/team.hpp"

#include <pthread.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <new>
#include <string>
#include <system_error>
#include <thread>

#include <hwy/cache_control.h>

#include <mamba/error.hpp>

namespace mamba::detail {

namespace {

// Long enough to bridge the single-threaded work between two products of a decode step.
constexpr std::chrono::microseconds longest_spin{100};

// True as soon as `ready` is, false if it was not for longest_spin.
template <class Ready>
bool spin_until(const Ready& ready) {
  const auto start = std::chrono::steady_clock::now();
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      hwy::Pause();
    }
  } while (std::chrono::steady_clock::now() - start < longest_spin);
  return false;
}

using Call = void (*)(const void* context, int first, int last);

// A place for one call at a time. Places outlive all calls, so a thread that comes late looks at
// valid memory; a call's number tells it that its own is over.
//
// Two threads that may put each other to sleep agree through sequentially consistent operations:
// one side writes `unfinished` and reads `caller_sleeps`, the other writes `caller_sleeps` and
// reads `unfinished`, and at least one of them sees what the other wrote. The same holds for
// `seats` and Workers::sleepers_. All atomic operations here are of that kind, the default.
struct alignas(64) Place {
  // The call's number (32 bits), its pieces (16) and the next piece nobody has taken (16), in one
  // word, so that a thread that comes late can never take a piece of another call than it joined.
  static constexpr int most_pieces = 0xffff;
  std::atomic<std::uint64_t> ticket{0};
  // The call's number (32 bits) and how many threads may still join it (32).
  std::atomic<std::uint64_t> seats{0};
  std::atomic<int> unfinished{0};
  std::atomic<bool> caller_sleeps{false};
  // Read by who has taken a piece: until that is finished the call goes on, and nobody writes them.
  Call call = nullptr;
  const void* context = nullptr;
  std::int64_t parts = 0;
  std::int64_t pieces = 0;
  std::mutex mutex;
  std::condition_variable done;

  static std::uint32_t number_of(std::uint64_t word) {
    return static_cast<std::uint32_t>(word >> 32);
  }
  static std::uint64_t pieces_left(std::uint64_t ticket) {
    return (ticket >> 16 & most_pieces) - (ticket & most_pieces);
  }
};

class Workers {
 public:
  // For as long as the process lives: a thread may still sleep here while static objects end.
  static Workers& all() {
    static Workers& workers = made();
    return workers;
  }

  // A team that uses `helpers` threads besides its caller comes, or goes.
  void add(int helpers);
  void remove(int helpers) {
    const std::lock_guard<std::mutex> lock(mutex_);
    lent_ -= helpers;
  }

  void run(int helpers, int parts, Call call, const void* context);

 private:
  static constexpr int place_count = 64;  // more calls than this at once work without helpers

  static Workers& made();
  void forget_threads();
  int take_place();
  bool take_piece(Place& place, std::uint32_t number, int& piece);
  void work_on(Place& place, std::uint32_t number);
  bool joinable() const;
  bool join_some();
  void work();

  std::array<Place, place_count> places_;
  std::atomic<std::uint64_t> free_{~std::uint64_t{0}};  // a bit for each place without a call
  std::atomic<std::uint64_t> open_{0};                  // a bit for each with a piece to take
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
  int started_ = 0;        // with mutex_
  std::int64_t lent_ = 0;  // with mutex_: helpers of all teams together
};

// fork() copies one thread alone: the copy of the process starts its own when a team comes.
Workers& Workers::made() {
  static Workers& workers = *new Workers;
  pthread_atfork([] { workers.mutex_.lock(); }, [] { workers.mutex_.unlock(); },
                 [] {
                   workers.forget_threads();
                   workers.mutex_.unlock();
                 });
  return workers;
}

void Workers::forget_threads() {
  started_ = 0;
  sleepers_ = 0;
  open_ = 0;                             // calls of the other threads
  new (&wake_) std::condition_variable;  // which would wake the threads that waited for it first
}

// As many threads as the largest team uses; more for several teams, up to what there are cores for.
void Workers::add(int helpers) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto cores = static_cast<std::int64_t>(std::thread::hardware_concurrency());
  const std::int64_t wanted = std::max<std::int64_t>(helpers, std::min(lent_ + helpers, cores - 1));
  for (; started_ < wanted; ++started_) {
    try {
      std::thread([this] { work(); }).detach();
    } catch (const std::system_error& error) {
      throw DeviceError(
          "Stream", "threads", std::to_string(wanted + 1),
          std::to_string(started_ + 1) + ": the system starts no more (" + error.what() + ")");
    }
  }
  lent_ += helpers;
}

// -1: none is free.
int Workers::take_place() {
  std::uint64_t free = free_.load();
  while (free != 0) {
    if (free_.compare_exchange_weak(free, free & (free - 1))) return __builtin_ctzll(free);
  }
  return -1;
}

void Workers::run(int helpers, int parts, Call call, const void* context) {
  const int index = take_place();
  if (index < 0) return call(context, 0, parts);
  const std::uint64_t bit = std::uint64_t{1} << index;
  Place& place = places_[static_cast<std::size_t>(index)];
  const int pieces = std::min(parts, Place::most_pieces);
  place.call = call;
  place.context = context;
  place.parts = parts;
  place.pieces = pieces;
  place.unfinished = pieces;
  const std::uint32_t number = Place::number_of(place.ticket) + 1;
  const std::uint64_t numbered = std::uint64_t{number} << 32;
  place.ticket = numbered | static_cast<std::uint64_t>(pieces) << 16;
  open_ |= bit;
  place.seats = numbered | static_cast<std::uint64_t>(helpers);  // last: from here on others join
  if (sleepers_ > 0) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
    }  // who is about to sleep has looked, or sleeps
    for (int i = std::min(helpers, pieces - 1); i > 0; --i) wake_.notify_one();
  }
  work_on(place, number);
  const auto done = [&] { return place.unfinished == 0; };
  if (!spin_until(done)) {
    std::unique_lock<std::mutex> lock(place.mutex);
    place.caller_sleeps = true;
    place.done.wait(lock, done);
    place.caller_sleeps = false;
  }
  free_ |= bit;
}

// The next piece of the call with this number, if there is one left.
bool Workers::take_piece(Place& place, std::uint32_t number, int& piece) {
  std::uint64_t ticket = place.ticket;
  do {
    if (Place::number_of(ticket) != number || Place::pieces_left(ticket) == 0) return false;
  } while (!place.ticket.compare_exchange_weak(ticket, ticket + 1));
  piece = static_cast<int>(ticket & Place::most_pieces);
  // With a piece in hand the call cannot end, and so the bit is that of no later call.
  if (Place::pieces_left(ticket) == 1) open_ &= ~(std::uint64_t{1} << (&place - places_.data()));
  return true;
}

void Workers::work_on(Place& place, std::uint32_t number) {
  for (int piece = 0; take_piece(place, number, piece);) {
    const auto begin = [&](std::int64_t i) {
      return static_cast<int>(place.parts * i / place.pieces);
    };
    place.call(place.context, begin(piece), begin(piece + 1));
    if (place.unfinished.fetch_sub(1) == 1 && place.caller_sleeps) {
      const std::lock_guard<std::mutex> lock(place.mutex);
      place.done.notify_one();
    }
  }
}

bool Workers::joinable() const {
  for (std::uint64_t open = open_; open != 0; open &= open - 1) {
    const Place& place = places_[static_cast<std::size_t>(__builtin_ctzll(open))];
    if (static_cast<std::uint32_t>(place.seats) != 0 && Place::pieces_left(place.ticket) != 0) {
      return true;
    }
  }
  return false;
}

// Joins a call that has a seat, and works on it to its end.
bool Workers::join_some() {
  for (std::uint64_t open = open_; open != 0; open &= open - 1) {
    Place& place = places_[static_cast<std::size_t>(__builtin_ctzll(open))];
    std::uint64_t seats = place.seats;
    while (static_cast<std::uint32_t>(seats) != 0) {
      if (!place.seats.compare_exchange_weak(seats, seats - 1)) continue;
      work_on(place, Place::number_of(seats));
      return true;
    }
  }
  return false;
}

void Workers::work() {
  const auto ready = [this] { return joinable(); };
  for (;;) {
    if (join_some() || spin_until(ready)) continue;
    std::unique_lock<std::mutex> lock(mutex_);
    ++sleepers_;
    wake_.wait(lock, ready);
    --sleepers_;
  }
}

}  // namespace

Team::Team(int threads) : size_(threads) { Workers::all().add(size_ - 1); }
Team::~Team() { Workers::all().remove(size_ - 1); }

void Team::run_parts(int parts, Call call, const void* context) const {
  Workers::all().run(size_ - 1, parts, call, context);
}

}  // namespace mamba::detail
