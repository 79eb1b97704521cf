// Package open opens a fleet store by its address, so that what uses a store
// does not know which kinds there are.
package open

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/fleet/sqlite"
)

// Store opens the store at an address:
//
//	sqlite:PATH   a file on this machine, for one machine's processes
func Store(ctx context.Context, address string, logger *slog.Logger) (fleet.Store, error) {
	path, ok := strings.CutPrefix(address, "sqlite:")
	if !ok || path == "" {
		return nil, fmt.Errorf("store %q: want sqlite:PATH", address)
	}
	return sqlite.Open(ctx, sqlite.Config{Path: path, Logger: logger})
}
