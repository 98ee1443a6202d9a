// Ctrl-C and SIGTERM as a flag that the work looks at where it can stop.
#pragma once

// From here on the first of each signal ends nothing by itself.
void catch_interrupts();

bool interrupted();

// Can be read from the first of the signals on. For poll(), which would sleep through one that
// comes between a look at interrupted() and the call, or that another thread is told of.
int interrupt_descriptor();
