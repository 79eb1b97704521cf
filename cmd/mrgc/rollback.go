package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/mrgc/mrgc/internal/config"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
	"github.com/mrgc/mrgc/router"
)

// rollback is a line of the record of versions that were rolled back.
type rollback struct {
	At      time.Time     `json:"at"`
	Region  fleet.Region  `json:"region"` // whose router it was
	Model   string        `json:"model"`
	Version string        `json:"version"`
	Weights routing.Split `json:"weights_before"`
	Reason  string        `json:"reason"`
}

// rollBack is how a router rolls a version back: it sets its weight to 0 in the file
// that every router follows, and writes down why.
func rollBack(path string, region fleet.Region, log *slog.Logger) func(router.Rollback) error {
	return func(r router.Rollback) error {
		if err := setWeight(path, r.Model, r.Version, 0, r.Split); err != nil {
			return err
		}
		if err := record(path, rollback{time.Now().UTC(), region, r.Model, r.Version, r.Split, r.Reason}); err != nil {
			log.Error("a roll-back is not recorded", "model", r.Model, "version", r.Version, "error", err)
		}
		return nil
	}
}

// record appends to the record, in one write.
func record(path string, r rollback) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(config.RollbackRecord(path), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Close())
}

// recorded gives a configuration's roll-backs, oldest first.
func recorded(path string) (all []rollback, err error) {
	text, err := os.ReadFile(config.RollbackRecord(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for i, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		var r rollback
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", config.RollbackRecord(path), i+1, err)
		}
		all = append(all, r)
	}
	return all, nil
}
