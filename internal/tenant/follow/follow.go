// Package follow keeps a signed list of tenants up to date from a file.
package follow

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/mrgc/mrgc/internal/dsse"
	"github.com/mrgc/mrgc/internal/tenant"
)

// Interval is how often the file is looked at: the largest part of how long a
// revocation takes.
const Interval = 250 * time.Millisecond

// File is a signed list in a file that is replaced as a whole (written beside
// it, and renamed): half a file is one that does not verify.
type File struct {
	path   string
	keeper *tenant.Keeper
	seen   os.FileInfo // of the content that was last offered; nil: there was no file
	log    *slog.Logger
}

// Open reads the keys and the list, both of which must be good at the start.
func Open(path, keyPath string, log *slog.Logger) (*File, error) {
	keyPEM, err := os.ReadFile(keyPath)
	if err != nil {
		return nil, fmt.Errorf("key that verifies the list of tenants: %w", err)
	}
	keys, err := dsse.ParseVerificationKeys(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", keyPath, err)
	}
	keeper, err := tenant.NewKeeper(keys...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", keyPath, err)
	}
	f := &File{path: path, keeper: keeper, log: log}
	if err := f.look(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

// Keeper holds the newest list.
func (f *File) Keeper() *tenant.Keeper { return f.keeper }

// Run follows the file until ctx ends. What does not verify, or is older than
// what was there, is logged and leaves the last good list in place.
func (f *File) Run(ctx context.Context) {
	ticker := time.NewTicker(Interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		before := f.keeper.Set().Version()
		if err := f.look(); err != nil {
			f.log.Error("the list of tenants is refused; the one before stays", "file", f.path, "error", err)
		} else if now := f.keeper.Set(); now.Version() != before {
			f.log.Info("list of tenants", "version", now.Version(), "expires", now.Expires())
		}
	}
}

// look offers the file's content, once for each.
func (f *File) look() error {
	info, err := os.Stat(f.path)
	if err != nil {
		if f.seen == nil && f.keeper.Set() != nil {
			return nil // said once
		}
		f.seen = nil
		return err
	}
	if f.seen != nil && sameContent(f.seen, info) {
		return nil
	}
	content, err := os.ReadFile(f.path)
	if err != nil {
		return err
	}
	f.seen = info
	return f.keeper.Offer(content, time.Now())
}

// sameContent compares what tells one content of a file from another. Two that are
// written within the clock's tick may differ by their inodes only, as signatures make
// lists of one size.
func sameContent(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}
