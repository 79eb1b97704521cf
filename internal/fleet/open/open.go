// Package open opens a fleet store by its address, so that what uses a store
// does not know which kinds there are.
package open

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/mrgc/mrgc/internal/awsclient"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/fleet/dynamodb"
	"github.com/mrgc/mrgc/internal/fleet/sqlite"
)

// Forms is how an address may look, for the help of a flag.
const Forms = "sqlite:PATH or dynamodb:TABLE[?region=REGION&endpoint=URL]"

// Store opens the store at an address:
//
//	sqlite:PATH      a file on this machine, for one machine's processes
//	dynamodb:TABLE   a DynamoDB table, for a cluster on AWS, with
//	  ?region=R      AWS's name of its region; default: $AWS_REGION or AWS's configuration
//	  ?endpoint=URL  what to ask in the place of AWS, such as DynamoDB Local
//
// The AWS identity is whatever AWS's default chain finds.
func Store(ctx context.Context, address string, logger *slog.Logger) (fleet.Store, error) {
	kind, rest, _ := strings.Cut(address, ":")
	switch {
	case kind == "sqlite" && rest != "":
		store, err := sqlite.Open(ctx, sqlite.Config{Path: rest, Logger: logger})
		if err != nil {
			return nil, err
		}
		return store, nil
	case kind == "dynamodb" && rest != "":
		at, err := awsclient.ParseAddress(rest)
		if err != nil {
			return nil, fmt.Errorf("store %q: %w", address, err)
		}
		store, err := dynamodb.Open(ctx, dynamodb.Config{Table: at.Name, Region: at.Region, Endpoint: at.Endpoint, Logger: logger})
		if err != nil {
			return nil, err
		}
		return store, nil
	}
	return nil, fmt.Errorf("store %q: want %s", address, Forms)
}
