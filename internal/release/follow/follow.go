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
const Interval = time.Second

// File is a signed manifest in a file that is replaced as a whole.
type File struct {
	path string
	keys []ed25519.PublicKey
	log  *slog.Logger
	seen stamp  // of the content that was looked at last
	file []byte // what held was read from
	held atomic.Pointer[release.Manifest]
}

// stamp tells one content of a file from another.
type stamp struct {
	size     int64
	modified time.Time
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
		}
	}
}

// look takes the file's content, once for each.
func (f *File) look() error {
	var fresh stamp // zero while there is no file
	info, err := os.Stat(f.path)
	if err == nil {
		fresh = stamp{info.Size(), info.ModTime()}
	}
	if fresh == f.seen && f.Manifest() != nil {
		return nil
	}
	f.seen = fresh // an error is said once
	if err != nil {
		return err
	}
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
