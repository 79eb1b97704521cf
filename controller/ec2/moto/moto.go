// Package moto runs moto, an emulator of EC2, in tests.
//
//	if missing := moto.Missing(); missing != "" {
//		Skip(missing)
//	}
//	server, err := moto.Start(ctx, GinkgoWriter)
//	if err != nil { … }
//	defer server.Kill()
//
// `make moto` fetches it, pinned with hashes. It listens on loopback, takes any
// credentials, and keeps everything in memory. It honours no client token of a launch,
// and always has capacity.
package moto

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// Version of moto, which requirements.in and the Makefile name too.
const Version = "5.2.5"

// Server is a running moto.
type Server struct {
	Endpoint string // its URL

	process *os.Process
	gone    chan struct{} // closed when the process has ended
}

// Missing says what keeps moto from running here and what to do about it; empty:
// nothing.
func Missing() string {
	if _, err := exec.LookPath("python3"); err != nil {
		return "moto needs python3"
	}
	if dir, err := library(); err != nil || !exists(filepath.Join(dir, ".done")) {
		return "moto is not there: run `make moto`"
	}
	return ""
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// library finds moto's folder: in the module whose test this is.
func library() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if exists(filepath.Join(dir, "go.mod")) {
			return filepath.Join(dir, ".tools", "moto-"+Version), nil
		}
	}
	return "", errors.New("not in a module")
}

// Start runs a server and returns once it answers.
func Start(ctx context.Context, log io.Writer) (*Server, error) {
	dir, err := library()
	if err != nil {
		return nil, fmt.Errorf("moto: %w", err)
	}
	// Moto takes no port of the system's choice that it would tell.
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("moto: %w", err)
	}
	address := free.Addr().(*net.TCPAddr) //nolint:forcetypeassert // of a TCP listener
	if err := free.Close(); err != nil {
		return nil, fmt.Errorf("moto: %w", err)
	}
	cmd := exec.Command("python3", "-m", "moto.server", "-H", "127.0.0.1", "-p", fmt.Sprint(address.Port)) //nolint:gosec // a number
	cmd.Env = append(os.Environ(), "PYTHONPATH="+dir, "PYTHONDONTWRITEBYTECODE=1")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("moto: %w", err)
	}
	s := &Server{Endpoint: "http://" + address.String(), process: cmd.Process, gone: make(chan struct{})}
	go func() {
		defer close(s.gone)
		_ = cmd.Wait() // however it ended
	}()
	for {
		if s.answers(ctx) {
			return s, nil
		}
		select {
		case <-s.gone:
			return nil, errors.New("moto ended before it answered: see its log")
		case <-ctx.Done():
			s.Kill()
			return nil, fmt.Errorf("moto does not answer: %w", ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (s *Server) answers(ctx context.Context) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Endpoint+"/moto-api/data.json", nil)
	if err != nil {
		return false
	}
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	return resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
}

// Kill ends the server at once and waits until it is gone. Killing it again does
// nothing.
func (s *Server) Kill() {
	_ = s.process.Kill() // fails when it is gone already
	<-s.gone
}
