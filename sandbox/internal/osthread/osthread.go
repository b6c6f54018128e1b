// Package osthread runs a function on an operating system thread of its own that
// is thrown away afterwards, for state that Linux keeps per thread: namespaces,
// control groups, the parent whose death kills a child.
package osthread

import (
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// Run runs f on a thread that no other goroutine will ever use, waits for it,
// and returns its error. The thread ends with f, a moment after Run returned.
//
// The process's first thread cannot end like that: Go parks it, still in
// whatever namespace or group f brought it into, and /proc/self shows it. Should
// the scheduler offer it, Run holds it until f has another.
func Run(f func() error) error {
	var wg sync.WaitGroup
	var err error
	wg.Add(1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			go func() {
				runtime.LockOSThread()
				defer wg.Done()
				err = f()
			}()
			wg.Wait()
			runtime.UnlockOSThread()
			return
		}
		defer wg.Done()
		err = f()
	}()
	wg.Wait()
	return err
}
