// Package dynamodblocal runs DynamoDB Local, Amazon's own emulator, in tests and for
// `mrgc up --store dynamodb`.
//
//	if missing := dynamodblocal.Missing(); missing != "" {
//		Skip(missing)
//	}
//	server, err := dynamodblocal.Start(ctx, dynamodblocal.Config{Log: GinkgoWriter})
//	if err != nil { … }
//	defer server.Kill()
//
// `make dynamodb-local` fetches it (see fetch.sh). It is started through
// Loopback.java, because it has no option to listen on loopback alone; that file
// is compiled at each start, so a JDK is needed. It ends with the process that
// started it, however that ends, and sends no telemetry. It takes any
// credentials, and keeps a database for each access key and region.
package dynamodblocal

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
)

// Version of DynamoDB Local, which pom.xml and the Makefile name too.
const Version = "2.6.1"

// Config says how to run it.
type Config struct {
	Host string // loopback address; default 127.0.0.1
	Port int    // 0: one that the system chooses
	Dir  string // holds the data, which then outlives the server; empty: in memory
	// Log gets what the server prints, from two goroutines. nil: it is dropped.
	Log io.Writer
}

// Server is a running DynamoDB Local.
type Server struct {
	Port int

	host    string
	process *os.Process
	stdin   io.Closer     // its end is the server's
	gone    chan struct{} // closed when the process has ended
}

// Missing says what keeps DynamoDB Local from running here and what to do about
// it; empty: nothing.
func Missing() string {
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		return "DynamoDB Local is fetched for linux/amd64 only"
	}
	for _, program := range []string{"java", "javac"} {
		if _, err := exec.LookPath(program); err != nil {
			return "DynamoDB Local needs " + program + ": install a JDK 17 and Maven, then run `make dynamodb-local`"
		}
	}
	_, library, err := paths()
	if err != nil {
		return err.Error()
	}
	if _, err := os.Stat(library); err != nil {
		return "DynamoDB Local is not there: install Maven and run `make dynamodb-local`"
	}
	return ""
}

// Start runs a server and returns once it listens.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	launcher, library, err := paths()
	if err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = io.Discard
	}
	cfg.Host = cmp.Or(cfg.Host, "127.0.0.1")
	cmd := exec.Command("java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
		"-Djava.library.path="+library, "-classpath", filepath.Join(library, "*"), launcher,
		net.JoinHostPort(cfg.Host, strconv.Itoa(cfg.Port)), "-disableTelemetry")
	if cfg.Dir == "" {
		cmd.Args = append(cmd.Args, "-inMemory")
	} else {
		cmd.Args = append(cmd.Args, "-dbPath", cfg.Dir)
	}
	cmd.Stderr = cfg.Log
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("dynamodb local: %w", err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("dynamodb local: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("dynamodb local: %w", err)
	}
	s := &Server{host: cfg.Host, process: cmd.Process, stdin: stdin, gone: make(chan struct{})}
	ports := make(chan int, 1)
	go func() {
		defer close(s.gone)
		follow(stdout, cfg.Log, ports)
		_ = cmd.Wait() // however it ended
	}()
	select {
	case s.Port = <-ports:
		return s, nil
	case <-s.gone:
		return nil, errors.New("dynamodb local ended before it listened: see its log")
	case <-ctx.Done():
		s.Kill()
		return nil, fmt.Errorf("dynamodb local does not listen: %w", ctx.Err())
	}
}

// Endpoint is the server's URL.
func (s *Server) Endpoint() string { return fmt.Sprintf("http://%s:%d", s.host, s.Port) }

// Gone is closed when the server has ended.
func (s *Server) Gone() <-chan struct{} { return s.gone }

// Kill ends the server at once, as kill -9 does, and waits until it is gone.
// Killing it again does nothing.
func (s *Server) Kill() {
	_ = s.process.Kill() // fails when it is gone already
	<-s.gone
	_ = s.stdin.Close()
}

// follow copies the server's output, and reports the port that it names.
func follow(stdout io.Reader, log io.Writer, ports chan<- int) {
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		var port int
		if _, err := fmt.Sscanf(lines.Text(), "listening on port %d", &port); err == nil {
			ports <- port
			continue
		}
		_, _ = fmt.Fprintln(log, lines.Text())
	}
}

// paths finds the launcher and the folder with DynamoDB Local: in the module
// whose test this is.
func paths() (launcher, library string, err error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", "", fmt.Errorf("dynamodb local: %w", err)
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, "internal", "fleet", "dynamodb", "dynamodblocal", "Loopback.java"),
				filepath.Join(dir, ".tools", "dynamodb-local-"+Version), nil
		}
	}
	return "", "", errors.New("DynamoDB Local is started from a checkout of this project: run this there")
}
