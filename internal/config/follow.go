package config

import (
	"context"
	"os"
	"time"
)

// FollowInterval is how often a file that is followed is looked at. What changes it
// holds within twice that: once it has been the same for two looks.
const FollowInterval = 200 * time.Millisecond

// Follow hands over each new content of the file at path, once, until ctx ends: what
// it says, or why it cannot be used, which leaves the last good one in force. A file
// that is still being written is let alone: half of it may be valid, and mean
// something else.
func Follow(ctx context.Context, path string, use func(*Config, error)) {
	ticker := time.NewTicker(FollowInterval)
	defer ticker.Stop()
	var taken, seen os.FileInfo // of what was read last, and at the last look; nil: no file
	for first := true; ; first = false {
		now, err := os.Stat(path)
		if err != nil {
			now = nil // who replaces it may have removed it before
		}
		switch {
		case now == nil || sameContent(now, taken) || !sameContent(now, seen) && !first:
		default:
			taken = now
			use(Load(path))
		}
		seen = now
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// sameContent says whether a file has not been written since, as far as its
// place, time and size tell.
func sameContent(a, b os.FileInfo) bool {
	return a != nil && b != nil && os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}
