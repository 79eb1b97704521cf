// Package rig is what benchmarks of routing stand on: processes of their own for
// the parts, identities, instances as Envoy and router see them, a router over a
// fixed fleet, the real Envoy, and tenants that send when they are due.
package rig

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
)

// Part is a part of a benchmark that runs in a process of its own: it is told
// what to do, starts, and gives its answer. It goes on until ctx ends.
type Part func(ctx context.Context, told *json.Decoder) (answer any, err error)

// PartOf is a part that is told a T.
func PartOf[T any](serve func(context.Context, T) (any, error)) Part {
	return func(ctx context.Context, told *json.Decoder) (any, error) {
		var t T
		if err := told.Decode(&t); err != nil {
			return nil, err
		}
		return serve(ctx, t)
	}
}

// RunPart runs a part if this process was started by [StartPart], and says
// whether it was. Call it first of all.
func RunPart(parts map[string]Part) bool {
	if len(os.Args) != 3 || os.Args[1] != "child" {
		return false
	}
	if err := runPart(os.Args[2], parts); err != nil {
		fmt.Fprintln(os.Stderr, os.Args[2]+":", err)
		os.Exit(1)
	}
	return true
}

func runPart(name string, parts map[string]Part) error {
	input := bufio.NewReader(os.Stdin)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	part, ok := parts[name]
	if !ok {
		return fmt.Errorf("there is no part %q", name)
	}
	answer, err := part(ctx, json.NewDecoder(input))
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(answer)
	}
	if err == nil {
		_, err = io.Copy(io.Discard, input)
	}
	return err
}

// StartPart runs a part of this program in a process of its own: it is told in
// by JSON, answers with one line when it is ready, and ends when its input does.
func StartPart(ctx context.Context, part string, told, answer any) (*exec.Cmd, io.WriteCloser, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.CommandContext(ctx, self, "child", part)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	input, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	output, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	err = json.NewEncoder(input).Encode(told)
	if err == nil {
		err = json.NewDecoder(output).Decode(answer)
	}
	if err != nil {
		_ = input.Close()
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", part, err), cmd.Wait())
	}
	return cmd, input, nil
}
