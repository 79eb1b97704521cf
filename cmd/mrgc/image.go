package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/mrgc/mrgc/enclave/image"
	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/eif"
)

func imageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Build the enclave's image, and say what it measures",
		Example: `  make eif KERNEL=bzImage ARGS="--model llama-8b --tenants-key tenants.pub --identity-roots ca.crt"
  mrgc image describe bin/mrgc-enclave.eif --release 7 --name 2026-11 > releases.json
  mrgc releases sign --key releases-signing.key --releases releases.json`,
		Args: cobra.NoArgs,
	}
	cmd.AddCommand(imageBuildCommand(), imageDescribeCommand())
	return cmd
}

func imageBuildCommand() *cobra.Command {
	var kernel, modules, initPath, enclave, tenantsKey, roots, engineHosts, out string
	var config image.Config
	var entry attest.Release
	cmd := &cobra.Command{
		Use:   "build",
		Short: "Put kernel, init and mrgc-enclave together",
		Long: `Build writes an image for nitro-cli run-enclave, and to standard output the entry
that mrgc releases sign takes: the same parts give the same bytes, anywhere.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			for _, part := range []struct {
				flag, path string
				into       *[]byte
			}{
				{"kernel", kernel, &config.Kernel},
				{"init", initPath, &config.Init},
				{"enclave", enclave, &config.Enclave},
				{"tenants-key", tenantsKey, &config.TenantsKey},
				{"identity-roots", roots, &config.IdentityRoots},
			} {
				if *part.into, err = os.ReadFile(part.path); err != nil {
					return fmt.Errorf("--%s: %w", part.flag, err)
				}
			}
			if engineHosts != "" {
				if config.EngineHosts, err = os.ReadFile(engineHosts); err != nil {
					return fmt.Errorf("--engine-hosts: %w", err)
				}
			}
			if config.Modules, err = readModules(modules); err != nil {
				return err
			}
			config.Name, config.Version = entry.Name, fmt.Sprint(entry.Version)
			built, err := image.Build(config)
			if err != nil {
				return err
			}
			file, err := built.Encode()
			if err != nil {
				return err
			}
			if err := os.WriteFile(out, file, 0o644); err != nil {
				return err
			}
			entry.PCRs = built.PCRs()
			return writeEntries(cmd.OutOrStdout(), entry)
		},
	}
	f := cmd.Flags()
	f.StringVar(&kernel, "kernel", "", "bzImage of x86-64, with the drivers of NSM and vsock, or with modules for them")
	f.StringVar(&config.CommandLine, "command-line", image.DefaultCommandLine, "what the kernel is told")
	f.StringVar(&modules, "modules", "", "folder of the kernel's modules (*.ko, *.ko.xz), loaded by order of their names (default: none)")
	f.StringVar(&initPath, "init", "bin/enclave/mrgc-enclave-init", "the image's first program")
	f.StringVar(&enclave, "enclave", "bin/enclave/mrgc-enclave", "the program that it becomes")
	f.StringVar(&config.Model, "model", "", "model that the enclave serves")
	f.StringVar(&tenantsKey, "tenants-key", "", "PEM file of the key that verifies lists of tenants")
	f.StringVar(&roots, "identity-roots", "", "PEM file of the roots of the cluster's identities")
	f.StringVar(&engineHosts, "engine-hosts", "", "JSON file of the measured host images on which alone the engine may run, which makes the mode nitro+attested-host (default: any)")
	f.StringVar(&config.KMSRegion, "kms-region", "", "AWS region of the KMS that releases tenants' data keys (default: none is asked)")
	f.StringVar(&config.Fleet.Name, "fleet", "", "fleet of enclaves to hold keys together with, for recipients of type fleet (default: none)")
	f.StringVar(&config.Fleet.KMSKey, "fleet-kms-key", "", "ARN of the KMS key of its seeds (mrgc keys policy --fleet)")
	f.StringVar(&config.Fleet.Table, "fleet-table", "", "ARN of its DynamoDB table, in --kms-region (mrgc state init)")
	f.Uint32Var(&config.ParentCID, "parent-cid", image.NitroParentCID, "vsock's number of the parent instance: 3 on Nitro")
	f.StringVar(&out, "out", "bin/mrgc-enclave.eif", "where the image goes")
	releaseFlags(cmd, &entry)
	required(cmd, "kernel", "model", "tenants-key", "identity-roots")
	return cmd
}

func imageDescribeCommand() *cobra.Command {
	var entry attest.Release
	cmd := &cobra.Command{
		Use:   "describe FILE…",
		Short: "Say what images measure, as entries for the manifest of releases",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var entries []attest.Release
			for _, path := range args {
				file, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				read, err := eif.Decode(file)
				if err != nil {
					return fmt.Errorf("%s: %w", path, err)
				}
				entry.PCRs = read.PCRs()
				entries = append(entries, entry)
			}
			return writeEntries(cmd.OutOrStdout(), entries...)
		},
	}
	releaseFlags(cmd, &entry)
	return cmd
}

func releaseFlags(cmd *cobra.Command, entry *attest.Release) {
	cmd.Flags().Uint64Var(&entry.Version, "release", 1, "the release's number, which rises")
	cmd.Flags().StringVar(&entry.Name, "name", "unnamed", "the release's name, for people")
}

// writeEntries writes what `mrgc releases sign` takes.
func writeEntries(w io.Writer, entries ...attest.Release) error { return printJSON(w, entries) }

// readModules reads a folder; none, without a name.
func readModules(folder string) (map[string][]byte, error) {
	if folder == "" {
		return nil, nil
	}
	paths, err := filepath.Glob(filepath.Join(folder, "*.ko*"))
	if err != nil {
		return nil, fmt.Errorf("--modules: %w", err)
	}
	if len(paths) == 0 {
		return nil, fmt.Errorf("--modules: no module (*.ko, *.ko.xz) in %s", folder)
	}
	modules := map[string][]byte{}
	for _, path := range paths {
		if modules[filepath.Base(path)], err = os.ReadFile(path); err != nil {
			return nil, fmt.Errorf("--modules: %w", err)
		}
	}
	return modules, nil
}
