package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/mrgc/mrgc/client"
)

func verifyReceiptCommand() *cobra.Command {
	var o connectOptions
	var request, response string
	cmd := &cobra.Command{
		Use:   "verify-receipt FILE",
		Short: "Verify an answer's receipt, and print what the enclave vouches for and what its host says",
		Long: `Verify-receipt reads a file that mrgc connect --receipts wrote. It fails unless an
enclave of a trusted release has signed the receipt; with --request and --response
it fails unless they are what was asked and answered, byte for byte.

A field marked enclave-verified is what the enclave itself saw or computed. One
marked host-asserted is what the operator's side told it, and worth as much.`,
		Example: `  mrgc verify-receipt 5f0c….json --releases releases.signed.json --releases-key releases-signing.pub
  mrgc verify-receipt 5f0c….json --releases releases.json --response answer.json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			stated, err := o.verifyReceipt(args[0])
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			if err := hashesTo("--request", request, stated.Enclave.RequestSHA256); err != nil {
				return err
			}
			if err := hashesTo("--response", response, stated.Enclave.ResponseSHA256); err != nil {
				return err
			}
			return writeStatement(cmd.OutOrStdout(), stated)
		},
	}
	f := cmd.Flags()
	o.trustFlags(f)
	f.StringVar(&request, "request", "", "file with the request's JSON, as it was sent")
	f.StringVar(&response, "response", "", "file with the answer's body, as it was received")
	required(cmd, "releases")
	return cmd
}

func (o *connectOptions) verifyReceipt(path string) (client.Statement, error) {
	file, err := os.ReadFile(path)
	if err != nil {
		return client.Statement{}, err
	}
	receipt, err := client.ParseReceipt(file)
	if err != nil {
		return client.Statement{}, err
	}
	config := client.Config{Policy: client.Policy{MinVersion: o.minVersion, Modes: o.modes, Regions: o.regions, RecipientTypes: o.types}}
	if err := o.readFiles(&config); err != nil {
		return client.Statement{}, err
	}
	return receipt.Verify(config.Policy)
}

func hashesTo(flag, path string, want [sha256.Size]byte) error {
	if path == "" {
		return nil
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("%s: %w", flag, err)
	}
	if sha256.Sum256(content) != want {
		return fmt.Errorf("%s %s: the receipt is of another one", flag, path)
	}
	return nil
}

// writeStatement is a receipt for people.
func writeStatement(w io.Writer, s client.Statement) error {
	const enclave, host = "enclave-verified", "host-asserted"
	e, h := s.Enclave, s.Host
	wash := "none that the enclave was told of"
	if h.LastWash.ID != "" {
		wash = h.LastWash.ID + ", ended " + h.LastWash.EndedAt.Format(time.RFC3339)
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range [][3]string{
		{"release", fmt.Sprintf("%d (%s)", s.Release.Version, s.Release.Name), "attested"},
		{"mode", s.Claims.Mode, "attested"},
		{"recipient", s.Claims.Type.String(), "attested"},
		{"region", s.Claims.Region, "attested"},
		{"request", e.RequestID.String(), enclave},
		{"operation", e.Operation.String(), enclave},
		{"model", e.Model, enclave},
		{"request sha256", hex.EncodeToString(e.RequestSHA256[:]), enclave},
		{"status", fmt.Sprint(e.Status), enclave},
		{"response sha256", hex.EncodeToString(e.ResponseSHA256[:]), enclave},
		{"ended", e.EndedAt.Format(time.RFC3339), enclave},
		{"cache salt", saltID(e.SaltID), enclave},
		{"cache kept apart by", orNotTold(h.Cache), host},
		{"model version", orNotTold(h.ModelVersion), host},
		{"prompt tokens", fmt.Sprint(h.PromptTokens), host},
		{"output tokens", fmt.Sprint(h.OutputTokens), host},
		{"last wash", wash, host},
	} {
		fmt.Fprintf(table, "%s\t%s\t%s\n", row[0], row[1], row[2])
	}
	return table.Flush()
}

// saltID names the salt; two answers with the same one may share a cache.
func saltID(id client.SaltID) string {
	if id == (client.SaltID{}) {
		return "none: the engine was not asked"
	}
	return id.String()
}

func orNotTold(what string) string { return cmp.Or(what, "not told") }

// keepReceipts writes each receipt into a directory, which it makes, as REQUEST_ID.json,
// readable by its owner alone.
func keepReceipts(dir string, failed func(error)) (func(requestID string, r client.Receipt), error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("--receipts: %w", err)
	}
	return func(requestID string, r client.Receipt) {
		content, err := json.MarshalIndent(r, "", "  ")
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, requestID+".json"), append(content, '\n'), 0o600)
		}
		if err != nil {
			failed(err)
		}
	}, nil
}
