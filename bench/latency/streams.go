package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mrgc/mrgc/bench/cluster"
	"github.com/mrgc/mrgc/bench/result"
	"github.com/mrgc/mrgc/engine/sim"
)

const (
	// streamInstances share the streams. Each takes 64 requests at once, and the
	// first list of recipients that connect gets, which it keeps for some seconds,
	// may lack the instance that came up last.
	streamInstances = 3
	maxStreams      = (streamInstances - 1) * 64
	slowModel       = "sim"
)

// measureStreams opens streams that say one token and then nothing, and looks
// what memory each program has then, beside what it had before.
func measureStreams(ctx context.Context, o options, r *result.Result) error {
	if o.streams == 0 {
		return nil
	}
	if o.streams > maxStreams {
		return fmt.Errorf("%d streams: the cluster takes %d", o.streams, maxStreams)
	}
	engine, stop, err := slowEngine()
	if err != nil {
		return err
	}
	defer stop()
	return with(ctx, func(c *cluster.Cluster) error {
		env, err := c.Env()
		if err != nil {
			return err
		}
		w := throughConnect(env)
		if _, err := w.burst(ctx, 1, chat(slowModel, 1, map[string]any{"stream": true})); err != nil {
			return err
		}
		before, err := c.MemoryMiB()
		if err != nil {
			return err
		}
		streaming, closeAll := context.WithCancel(ctx)
		defer closeAll()
		if err := openStreams(streaming, w, o.streams); err != nil {
			return err
		}
		after, err := c.MemoryMiB()
		if err != nil {
			return err
		}
		reportGrowth(r, before, after, o.streams)
		return nil
	}, "--engine-url", engine, "--model-name", slowModel, "--regions", "use1", "--instances", fmt.Sprint(streamInstances))
}

// slowEngine is a simulator whose second token takes longer than anyone waits.
func slowEngine() (url string, stop func(), err error) {
	engine, err := sim.New(sim.Config{Model: slowModel, Slots: maxStreams, PerToken: time.Hour})
	if err != nil {
		return "", nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	server := &http.Server{
		Handler:           engine,
		ReadHeaderTimeout: 10 * time.Second,
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(l) // ends with Close
	}()
	return "http://" + l.Addr().String(), func() {
		_ = server.Close()
		<-ended
	}, nil
}

// openStreams returns when each of n streams has said its first token. They stay
// open until ctx ends, which closes them.
func openStreams(ctx context.Context, w way, n int) error {
	body := chat(slowModel, 2, map[string]any{"stream": true})
	var group errgroup.Group
	group.SetLimit(8) // opened as they would be in operation, not all at once
	for range n {
		group.Go(func() error {
			resp, err := w.send(ctx, body) // its body ends with ctx
			if err != nil {
				return err
			}
			return firstToken(resp.Body)
		})
	}
	return group.Wait()
}

func firstToken(events io.Reader) error {
	lines := bufio.NewScanner(events)
	for lines.Scan() {
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok && hasContent([]byte(data)) {
			return nil
		}
	}
	return errors.Join(lines.Err(), errors.New("a stream ended before its first token"))
}

func reportGrowth(r *result.Result, before, after map[string]float64, streams int) {
	b := result.Breakdown{Name: "memory (PSS) per 1,000 open streams", Unit: "MiB", Parts: map[string]float64{}}
	for program := range after {
		b.Parts[program] = (after[program] - before[program]) * 1000 / float64(streams)
	}
	r.Figures = append(r.Figures, result.Figure{Name: b.Name, Value: b.Sum(), Unit: b.Unit})
	r.Breakdowns = append(r.Breakdowns, b)
	r.Notes = append(r.Notes, fmt.Sprintf("Memory per 1,000 open streams is extrapolated from %d streams over %d instances, which take 64 requests each. "+
		"It is what an idle cluster grows by when the streams open, so what Go's collector leaves for later is in it.", streams, streamInstances))
}
