//go:build linux

// Softnitrocli stands in for nitro-cli where there is no Nitro: it takes the same
// commands and options, prints the same JSON to standard output and the same kind of
// words to standard error, and its enclaves are processes that outlive it, as Nitro's
// outlive nitro-cli.
//
// Environment:
//
//	SOFTNITROCLI_DIR        where it remembers its enclaves, a file for each
//	SOFTNITROCLI_COMMAND    JSON list: what an enclave runs, {cid} and {eif} replaced
//	SOFTNITROCLI_MEMORY_MIB what the allocator has, default 2048
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// enclave is one as nitro-cli prints it.
type enclave struct {
	EnclaveName  string
	EnclaveID    string
	ProcessID    int
	EnclaveCID   uint32
	NumberOfCPUs int
	CPUIDs       []int
	MemoryMiB    int
	State        string `json:",omitempty"`
	Flags        string `json:",omitempty"`
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("[ E01 ] Missing mandatory argument. The user did not provide a command")
	}
	switch args[0] {
	case "run-enclave":
		return runEnclave(args[1:])
	case "describe-enclaves":
		all, err := enclaves()
		if err != nil {
			return err
		}
		for i := range all {
			all[i].State, all[i].Flags = "RUNNING", "NONE"
		}
		return show(all)
	case "terminate-enclave":
		return terminateEnclave(args[1:])
	default:
		return fmt.Errorf("error: unrecognized subcommand '%s'", args[0])
	}
}

func runEnclave(args []string) error {
	f := flag.NewFlagSet("run-enclave", flag.ContinueOnError)
	name, eif := f.String("enclave-name", "", ""), f.String("eif-path", "", "")
	cid, cpus, memory := f.Uint("enclave-cid", 0, ""), f.Int("cpu-count", 0, ""), f.Int("memory", 0, "")
	if err := f.Parse(args); err != nil {
		return err
	}
	if _, err := os.Stat(*eif); err != nil {
		return fmt.Errorf("[ E19 ] File operation failure. Such error appears when the EIF cannot be read: %w", err)
	}
	all, err := enclaves()
	if err != nil {
		return err
	}
	free := 2048
	if text := os.Getenv("SOFTNITROCLI_MEMORY_MIB"); text != "" {
		if free, err = strconv.Atoi(text); err != nil {
			return err
		}
	}
	for _, e := range all {
		if e.EnclaveCID == uint32(*cid) { //nolint:gosec // a CID has 32 bits
			return fmt.Errorf("[ E52 ] Failed to start enclave: CID %d is in use", *cid)
		}
		free -= e.MemoryMiB
	}
	if *memory > free {
		return fmt.Errorf("[ E27 ] Insufficient memory available. User provided `memory` is %d MB, which is more than the available hugepage memory", *memory)
	}
	fmt.Fprintln(os.Stderr, "Start allocating memory...")
	var command []string
	if err := json.Unmarshal([]byte(os.Getenv("SOFTNITROCLI_COMMAND")), &command); err != nil || len(command) == 0 {
		return fmt.Errorf("SOFTNITROCLI_COMMAND: want a JSON list: %w", err)
	}
	for i := range command {
		command[i] = strings.NewReplacer("{cid}", fmt.Sprint(*cid), "{eif}", *eif).Replace(command[i])
	}
	cmd := exec.Command(command[0], command[1:]...) //nolint:gosec // what a test says
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	e := enclave{
		EnclaveName: *name, EnclaveID: fmt.Sprintf("i-0123456789abcdef0-enc%016x", time.Now().UnixNano()), ProcessID: cmd.Process.Pid,
		EnclaveCID: uint32(*cid), NumberOfCPUs: *cpus, CPUIDs: []int{}, MemoryMiB: *memory, //nolint:gosec // a CID has 32 bits
	}
	for i := range *cpus {
		e.CPUIDs = append(e.CPUIDs, 2*i+1)
	}
	content, err := json.Marshal(e)
	if err == nil {
		err = os.WriteFile(fileOf(e.EnclaveID)+".new", content, 0o600)
	}
	if err == nil {
		err = os.Rename(fileOf(e.EnclaveID)+".new", fileOf(e.EnclaveID))
	}
	if err != nil {
		return errors.Join(err, cmd.Process.Kill())
	}
	fmt.Fprintf(os.Stderr, "Started enclave with enclave-cid: %d, memory: %d MiB, cpu-ids: %v\n", *cid, *memory, e.CPUIDs)
	return show(e)
}

func terminateEnclave(args []string) error {
	f := flag.NewFlagSet("terminate-enclave", flag.ContinueOnError)
	id := f.String("enclave-id", "", "")
	if err := f.Parse(args); err != nil {
		return err
	}
	all, err := enclaves()
	if err != nil {
		return err
	}
	for _, e := range all {
		if e.EnclaveID != *id {
			continue
		}
		if err := syscall.Kill(-e.ProcessID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
		for runs(e.ProcessID) {
			time.Sleep(10 * time.Millisecond)
		}
		fmt.Fprintf(os.Stderr, "Successfully terminated enclave %s.\n", *id)
		if err := os.Remove(fileOf(*id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return show(map[string]any{"EnclaveID": *id, "Terminated": true})
	}
	return fmt.Errorf("[ E54 ] Enclave process connection failure: %s is not here", *id)
}

func fileOf(id string) string { return filepath.Join(os.Getenv("SOFTNITROCLI_DIR"), id+".json") }

// enclaves are those whose processes run. What has ended is forgotten.
func enclaves() ([]enclave, error) {
	files, err := filepath.Glob(fileOf("*"))
	all := []enclave{}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // terminated meanwhile
		}
		if err != nil {
			return nil, err
		}
		var e enclave
		if err := json.Unmarshal(content, &e); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if !runs(e.ProcessID) {
			if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			continue
		}
		all = append(all, e)
	}
	return all, err
}

// runs says whether a process is there, and not merely waits to be reaped.
func runs(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(stat), ") ")
	return err == nil && !strings.HasPrefix(rest, "Z")
}

func show(value any) error {
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}
