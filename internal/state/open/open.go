// Package open opens a state store by its address, so that what uses a store does
// not know which kinds there are.
package open

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/mrgc/mrgc/internal/awsclient"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/dynamodb"
	"github.com/mrgc/mrgc/internal/state/sqlite"
)

// Forms is how an address may look, for the help of a flag.
const Forms = "sqlite:PATH or dynamodb:[PREFIX][?region=REGION&endpoint=URL]"

// Store opens the store at an address:
//
//	sqlite:PATH         a file on this machine, for one machine's processes
//	dynamodb:PREFIX     DynamoDB tables whose names begin with PREFIX, which is
//	                    mostly empty, for a cluster on AWS, with
//	  ?region=R         AWS's name of the region whose replicas are used;
//	                    default: $AWS_REGION or AWS's configuration
//	  ?endpoint=URL     what to ask in the place of AWS, such as DynamoDB Local
//	  ?strong-region=R  with an endpoint: the region whose strongly consistent tables
//	                    all regions use, since no emulator keeps them in step
//
// The AWS identity is whatever AWS's default chain finds.
func Store(ctx context.Context, address string, logger *slog.Logger) (state.Store, error) {
	kind, rest, there := strings.Cut(address, ":")
	switch {
	case kind == "sqlite" && rest != "":
		store, err := sqlite.Open(ctx, sqlite.Config{Path: rest, Logger: logger})
		if err != nil {
			return nil, err
		}
		return store, nil
	case kind == "dynamodb" && there:
		cfg, err := Tables(address)
		if err != nil {
			return nil, err
		}
		cfg.Logger = logger
		store, err := dynamodb.Open(ctx, cfg)
		if err != nil {
			return nil, err
		}
		return store, nil
	}
	return nil, fmt.Errorf("state store %q: want %s", address, Forms)
}

// Tables reads the address of DynamoDB tables, to make or check them.
func Tables(address string) (dynamodb.Config, error) {
	rest, is := strings.CutPrefix(address, "dynamodb:")
	if !is {
		return dynamodb.Config{}, fmt.Errorf("state store %q: want dynamodb:[PREFIX][?region=REGION&endpoint=URL]: only DynamoDB has tables to make", address)
	}
	at, err := awsclient.ParseAddress(rest, "strong-region")
	if err != nil {
		return dynamodb.Config{}, fmt.Errorf("state store %q: %w", address, err)
	}
	cfg := dynamodb.Config{Settings: at.Settings, Prefix: at.Name, StrongRegion: at.Others["strong-region"]}
	if cfg.StrongRegion != "" && cfg.Endpoint == "" {
		return dynamodb.Config{}, fmt.Errorf("state store %q: strong-region is for emulators: AWS keeps strongly consistent tables in step by itself", address)
	}
	return cfg, nil
}
