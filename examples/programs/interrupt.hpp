// Ctrl-C and SIGTERM as a flag that the work looks at where it can stop.
#pragma once

// From here on the signals end nothing by themselves.
void catch_interrupts();

bool interrupted();
