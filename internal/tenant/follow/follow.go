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
	seen   stamp // of the content that was last offered
	log    *slog.Logger
}

// stamp tells one content of a file from another.
type stamp struct {
	size     int64
	modified time.Time
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
	f := &File{path: path, keeper: keeper, seen: stamp{size: -1}, log: log}
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
	var fresh stamp // zero while there is no file
	info, err := os.Stat(f.path)
	if err == nil {
		fresh = stamp{info.Size(), info.ModTime()}
	}
	if fresh == f.seen {
		return nil
	}
	if err != nil {
		f.seen = fresh // said once
		return err
	}
	content, err := os.ReadFile(f.path)
	if err != nil {
		return err
	}
	f.seen = fresh
	return f.keeper.Offer(content, time.Now())
}
