package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"github.com/mrgc/mrgc/internal/api"
)

// pathRestart is the one thing that can be asked for, by POST without a body. It is
// answered with [Restarted] when the engine's process runs again, or with an error.
const pathRestart = "/restart"

// request is an order to restart the engine.
type request struct{ answer chan answer } // holds one

type answer struct {
	done Restarted
	err  error
}

// serve answers on the control socket until what it returns is called.
func (s *supervisor) serve() (stop func(), err error) {
	if err := os.Remove(s.config.Control); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	l, err := listen(s.config.Control, s.config.GroupSocket)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+pathRestart, s.serveRestart)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(l) // says that it was closed
	}()
	return func() {
		// An order that is under way gets its answer.
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if server.Shutdown(ctx) != nil {
			_ = server.Close()
		}
		<-ended
	}, nil
}

// serveRestart passes an order on. A restart goes on when who has asked for it is
// gone.
func (s *supervisor) serveRestart(w http.ResponseWriter, _ *http.Request) {
	if !s.busy.CompareAndSwap(false, true) {
		api.Errorf(http.StatusConflict, "restart_under_way", "the engine is being restarted already").Write(w)
		return
	}
	defer s.busy.Store(false)
	order := request{answer: make(chan answer, 1)}
	select {
	case s.restarts <- order:
	case <-s.over:
		api.Errorf(http.StatusServiceUnavailable, "engine_ended", "the engine has ended, and so does its supervisor").Write(w)
		return
	}
	got := <-order.answer
	if got.err != nil {
		api.Errorf(http.StatusInternalServerError, "restart_failed", "%v", got.err).Write(w)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(got.done) // who has gone asks again
}

// listen makes the socket, which is its user's alone, or the group's too.
func listen(path string, group bool) (net.Listener, error) {
	umask := syscall.Umask(0o177) // at the start of a process that makes no other file meanwhile
	l, err := net.Listen("unix", path)
	syscall.Umask(umask)
	if err != nil {
		return nil, err
	}
	mode := os.FileMode(0o600)
	if group {
		mode = 0o660
	}
	if err := os.Chmod(path, mode); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// maxAnswer is more than any answer takes.
const maxAnswer = 128 << 10

// Restart asks the supervisor at a control socket to restart its engine. It returns
// when the engine's process was started; that it answers is for the caller to see. A
// restart goes on when ctx ends.
func Restart(ctx context.Context, control string) (Restarted, error) {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", control)
		},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://supervisor"+pathRestart, nil)
	if err != nil {
		return Restarted{}, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return Restarted{}, fmt.Errorf("engine supervisor: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(http.MaxBytesReader(nil, resp.Body, maxAnswer))
	if err != nil {
		return Restarted{}, fmt.Errorf("engine supervisor: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return Restarted{}, fmt.Errorf("engine supervisor: %s", api.ParseError(resp.StatusCode, body).Message)
	}
	var done Restarted
	if err := json.Unmarshal(body, &done); err != nil {
		return Restarted{}, fmt.Errorf("engine supervisor: its answer is not understood: %w", err)
	}
	return done, nil
}
