// The threads that CPU streams work with. The process has one set of them; a stream borrows as many
// as it may use for the length of a call, so that a thousand streams hold no more threads than one.
//
// Not OpenMP, because of what happens when the machine has other work: GCC's runtime spins for
// whole time slices while the thread it waits for has no core. Measured with one core of two taken
// by a compiler: a decode step of a 130m model took 20 to 780 ms; with this team it takes 22 to 24,
// alone 17 (f32, 2 threads). Here whoever is running takes the next part, nobody waits for a thread
// that has not begun, and spinning ends after a tenth of a millisecond.
#pragma once

namespace mamba::detail {

class Team {
 public:
  // The caller of run() is one of the `threads`, at least 1. The process is given the others that
  // it lacks; they stay until it ends. DeviceError where the system refuses to start one.
  explicit Team(int threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  // f(i) once for each i in [0, parts), on the caller and up to size() - 1 others, in any order;
  // returns when all are done. f must not throw.
  template <class F>
  void run(int parts, const F& f) const {
    const auto call = [](const void* context, int first, int last) {
      for (int i = first; i < last; ++i) (*static_cast<const F*>(context))(i);
    };
    if (parts <= 1 || size_ == 1) return call(&f, 0, parts);
    run_parts(parts, call, &f);
  }

 private:
  using Call = void (*)(const void* context, int first, int last);
  void run_parts(int parts, Call call, const void* context) const;

  int size_;
};

}  // namespace mamba::detail
