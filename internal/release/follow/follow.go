// Package follow keeps a signed manifest of releases up to date from a file.
package follow

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/mrgc/mrgc/internal/dsse"
	"github.com/mrgc/mrgc/internal/release"
)

// Interval is how often the file is looked at.
const Interval = 250 * time.Millisecond

// File is a signed manifest in a file that is replaced as a whole.
type File struct {
	// Changed, when set, is called by Run with each manifest that replaces another.
	Changed func(*release.Manifest)

	path string
	keys []ed25519.PublicKey
	log  *slog.Logger
	seen os.FileInfo // of the file that was looked at last; nil: there was none
	file []byte      // what held was read from
	held atomic.Pointer[release.Manifest]
}

// Open reads the keys and the manifest, both of which must be good at the start.
func Open(path, keyPath string, log *slog.Logger) (*File, error) {
	keyPEM, err := os.ReadFile(keyPath)
	if err != nil {
		return nil, fmt.Errorf("key that verifies releases: %w", err)
	}
	keys, err := dsse.ParseVerificationKeys(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", keyPath, err)
	}
	f := &File{path: path, keys: keys, log: log}
	if err := f.look(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

// Manifest is the newest that was seen. Nobody writes to it.
func (f *File) Manifest() *release.Manifest { return f.held.Load() }

// Run follows the file until ctx ends. What does not verify, or does not follow
// what was there, is logged and leaves the last good manifest in place.
func (f *File) Run(ctx context.Context) {
	ticker := time.NewTicker(Interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		before := f.Manifest()
		if err := f.look(); err != nil {
			f.log.Error("the manifest of releases is refused; the one before stays", "file", f.path, "error", err)
		} else if now := f.Manifest(); now != before {
			f.log.Info("manifest of releases", "version", now.Version, "min_version", now.MinVersion)
			if f.Changed != nil {
				f.Changed(now)
			}
		}
	}
}

// look takes the file's content, once for each.
func (f *File) look() error {
	info, err := os.Stat(f.path)
	if err != nil {
		if f.seen == nil && f.Manifest() != nil {
			return nil // said once
		}
		f.seen = nil
		return err
	}
	if f.seen != nil && sameContent(f.seen, info) {
		return nil
	}
	f.seen = info // an error is said once
	content, err := os.ReadFile(f.path)
	if err != nil {
		return err
	}
	m, err := release.Verify(f.keys, content)
	if err != nil {
		return err
	}
	if bytes.Equal(content, f.file) {
		return nil // written again
	}
	if err := m.Follows(f.Manifest()); err != nil {
		return err
	}
	f.file = content
	f.held.Store(m)
	return nil
}

// sameContent compares what tells one content of a file from another. Two that
// are written within the clock's tick differ by their inodes only.
func sameContent(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}
