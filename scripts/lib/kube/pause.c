/* Waits, and buries what its children leave behind. It is the first process of a pod's sandbox, as Kubernetes' own pause
 * is, and the first process of a test node: when it ends, the kernel ends everything that the node has started. */
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static void end(int number) {
    (void)number;
    _exit(0);
}

int main(void) {
    /* Ignored children leave no zombies (sigaction(2), NOTES), so there is nothing to wait for. */
    signal(SIGCHLD, SIG_IGN);
    /* The kernel keeps from a first process every signal that it has not asked for. */
    signal(SIGTERM, end);
    signal(SIGINT, end);
    for (;;)
        pause();
}
