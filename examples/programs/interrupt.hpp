// Ctrl-C and SIGTERM as a flag that the work looks at where it can stop.
#pragma once

// From here on the first of each signal ends nothing by itself.
void catch_interrupts();

bool interrupted();
