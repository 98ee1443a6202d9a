// The mark of what a shared library shows: all else in it is hidden.
#pragma once

// On a namespace it is of all that is declared between its braces, so every public header has it
// once: `namespace MAMBA_EXPORT mamba {`. The types of errors must have it in whoever throws and
// whoever catches, so it is the same in the library, in its users, and in a static build.
#define MAMBA_EXPORT [[gnu::visibility("default")]]
