package main

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/release"
)

func releasesCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "releases",
		Short: "Say which releases of the enclave are to be trusted, and sign it",
		Long: `Releases are in a manifest that you sign: each build of the enclave with its
measurements, and the lowest version that is still trusted. Clients
(mrgc connect --releases-key) and tenants' KMS keys (mrgc keys policy) follow it.`,
		Example: `  mrgc releases keygen --out releases-signing        once; keep the .key away from the cluster
  mrgc releases sign --key releases-signing.key --releases releases.json --min-version 7
  mrgc releases verify --key releases-signing.pub releases.signed.json`,
		Args: cobra.NoArgs,
	}
	cmd.AddCommand(keygenCommand("releases-signing"), releasesSignCommand(), releasesVerifyCommand())
	return cmd
}

func releasesSignCommand() *cobra.Command {
	var keyPath, releases, out string
	var minVersion uint64
	cmd := &cobra.Command{
		Use:   "sign",
		Short: "Sign a manifest of releases",
		Long: `Sign writes the releases of a JSON file as a signed manifest. Its version is one
above that of the manifest in --out, which the same key must have signed, and the
minimum version is not below that one's: what was once distrusted stays so.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			key, err := readSigningKey(keyPath)
			if err != nil {
				return err
			}
			m := &release.Manifest{Version: 1, MinVersion: minVersion}
			if m.Releases, err = readReleases(releases); err != nil {
				return err
			}
			before, err := manifestBefore(key, out)
			if err != nil {
				return err
			}
			if before != nil {
				m.Version = before.Version + 1
				if !cmd.Flags().Changed("min-version") {
					m.MinVersion = before.MinVersion
				}
			}
			if err := m.Follows(before); err != nil {
				return err
			}
			signed, err := release.Sign(key, m)
			if err != nil {
				return err
			}
			if err := replaceFile(out, signed); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "version %d is in %s\n", m.Version, out)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&keyPath, "key", "", "PEM file of the signing key")
	f.StringVar(&releases, "releases", "releases.json", "JSON file of the releases, with their PCRs")
	f.StringVar(&out, "out", "releases.signed.json", "where the signed manifest goes, and the one before is")
	f.Uint64Var(&minVersion, "min-version", 0, "lowest release to trust (default: as before)")
	required(cmd, "key")
	return cmd
}

// manifestBefore is the one that is to be replaced; nil: there is none.
func manifestBefore(key ed25519.PrivateKey, path string) (*release.Manifest, error) {
	file, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	before, err := release.Verify([]ed25519.PublicKey{key.Public().(ed25519.PublicKey)}, file)
	if err != nil {
		return nil, fmt.Errorf("%s, which would be replaced: %w", path, err)
	}
	return before, nil
}

func releasesVerifyCommand() *cobra.Command {
	var keyPath string
	cmd := &cobra.Command{
		Use:   "verify FILE",
		Short: "Say what a signed manifest says, if it is genuine",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := readManifest(args[0], "--key", keyPath)
			if err != nil {
				return err
			}
			return writeReleases(cmd.OutOrStdout(), m)
		},
	}
	cmd.Flags().StringVar(&keyPath, "key", "", "PEM file of the key that verifies it")
	required(cmd, "key")
	return cmd
}

// readManifest reads a signed manifest.
func readManifest(path, keyFlag, keyPath string) (*release.Manifest, error) {
	keys, err := readVerificationKeys(keyFlag, keyPath)
	if err != nil {
		return nil, err
	}
	file, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	m, err := release.Verify(keys, file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// readReleases reads releases that are not signed.
func readReleases(path string) ([]attest.Release, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("--releases: %w", err)
	}
	releases, err := attest.ParseReleases(content)
	if err != nil {
		return nil, fmt.Errorf("--releases %s: %w", path, err)
	}
	return releases, nil
}

// writeReleases is a manifest for people.
func writeReleases(w io.Writer, m *release.Manifest) error {
	fmt.Fprintf(w, "version %d, minimum release %d\n", m.Version, m.MinVersion)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "RELEASE\tNAME\tSTATE\tPCR0")
	for _, r := range m.Releases {
		state := "trusted"
		if r.Version < m.MinVersion {
			state = "too old"
		}
		fmt.Fprintf(table, "%d\t%s\t%s\t%s\n", r.Version, r.Name, state, r.PCRs[0])
	}
	return table.Flush()
}
