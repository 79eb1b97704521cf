package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/mrgc/mrgc/internal/dsse"
)

// keygenCommand makes a pair of keys for what the operator signs.
func keygenCommand(name string) *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "keygen",
		Short: "Make the key that signs, and the one that verifies",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, key, err := ed25519.GenerateKey(rand.Reader)
			if err != nil {
				return err
			}
			private, public, err := dsse.MarshalKey(key)
			if err != nil {
				return err
			}
			for _, path := range []string{out + ".key", out + ".pub"} {
				if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
					return fmt.Errorf("%s is there already: what it signed would verify no more", path)
				}
			}
			return errors.Join(os.WriteFile(out+".key", private, 0o600), os.WriteFile(out+".pub", public, 0o644))
		},
	}
	cmd.Flags().StringVar(&out, "out", name, "where: .key (secret) and .pub are appended")
	return cmd
}

func readSigningKey(path string) (ed25519.PrivateKey, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("--key: %w", err)
	}
	defer clear(pem)
	key, err := dsse.ParseSigningKey(pem)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

func readVerificationKeys(flag, path string) ([]ed25519.PublicKey, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	keys, err := dsse.ParseVerificationKeys(pem)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return keys, nil
}
