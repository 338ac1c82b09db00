// Holds the namespaces of a Pod: waits for the end, and for children that nobody else waits for.
#include <signal.h>
#include <sys/wait.h>

int main(void) {
  sigset_t all;
  int got = 0;
  sigfillset(&all);
  sigprocmask(SIG_BLOCK, &all, 0);
  while (got != SIGTERM && got != SIGINT) {
    sigwait(&all, &got);
    while (waitpid(-1, 0, WNOHANG) > 0) {
    }
  }
  return 0;
}
