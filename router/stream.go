package router

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"

	"github.com/mrgc/mrgc/internal/identity"
)

const (
	// The pauses before a broken stream is opened again; each is drawn from the
	// upper half.
	firstPause, longestPause = 100 * time.Millisecond, 5 * time.Second
	// streamBufferBytes is ample for what a router follows, of which each
	// connection carries one stream. gRPC's default is 32 KiB, twice.
	streamBufferBytes = 4 << 10
)

// errOwn ends a stream for good: it is this router's own.
var errOwn = errors.New("the router at this address is this one")

// dial prepares a connection for one stream from who must be at an address. It
// is opened when it is used, for which it may take connectTimeout.
func dial(address string, self *identity.Source, want identity.ID, connectTimeout time.Duration, more ...grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+address, append(more,
		grpc.WithTransportCredentials(credentials.NewTLS(self.ClientTLS(func(id identity.ID) bool { return id == want }))),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstPause, Multiplier: 2, Jitter: 0.2, MaxDelay: longestPause},
			MinConnectTimeout: connectTimeout,
		}),
		grpc.WithReadBufferSize(streamBufferBytes), grpc.WithWriteBufferSize(streamBufferBytes),
		grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(),
	)...)
}

// keepOpen has listen open a stream, and again whenever it has broken, until ctx
// ends or the stream is this router's own. Listen says whether anything was
// heard; broken is told why not, once for each silence.
func keepOpen(ctx context.Context, listen func() (heard bool, err error), broken func(error)) {
	pause, told := firstPause, false
	for {
		heard, err := listen()
		if ctx.Err() != nil || errors.Is(err, errOwn) {
			return
		}
		if heard {
			pause, told = firstPause, false
		}
		if !told {
			broken(err)
			told = true
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause/2 + rand.N(pause/2)): //nolint:gosec // no secret
		}
		pause = min(2*pause, longestPause)
	}
}
