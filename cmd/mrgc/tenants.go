package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/mrgc/mrgc/internal/credential"
	"github.com/mrgc/mrgc/internal/tenant"
)

// listFlag is where the operator's list lies.
const listFlag = "file"

func tenantsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tenants",
		Short: "Say who the tenants are, and sign it",
		Long: `Tenants are in a list that you edit with these commands and sign. What is signed
is what routers, parents and enclaves take; the list itself has no effect. It
holds digests of tokens, never a key.`,
		Example: `  mrgc tenants keygen --out tenants-signing          once; keep the .key away from the cluster
  mrgc tenants add acme --regions use1 2> acme.key   its API key goes to standard error
  mrgc tenants sign --key tenants-signing.key        version rises, expiry is set
  mrgc tenants revoke acme && mrgc tenants sign --key tenants-signing.key`,
		Args: cobra.NoArgs,
	}
	cmd.PersistentFlags().String(listFlag, "tenants.json", "the list, not signed")
	cmd.AddCommand(keygenCommand("tenants-signing"), tenantsAddCommand(), tenantsRevokeCommand(), tenantsSignCommand(), tenantsListCommand())
	return cmd
}

func tenantsAddCommand() *cobra.Command {
	var models, regions []string
	var limits tenant.Limits
	var sans []string
	var anotherKey, certificateOnly bool
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Add a tenant, or another API key of one",
		Long: `Add puts a tenant on the list and makes its API key, which is printed once, to
standard error, for the tenant alone. The list gets digests of what is derived
from it. It takes effect when the list is signed.

With --san Envoy knows it by its client's certificate, too, and with
--certificate-only by nothing else. It needs its API key in either case: what the
enclave goes by is derived from it, because TLS ends before the enclave.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := credential.New(rand.Reader, args[0])
			if err != nil {
				return err
			}
			fresh := tenant.Tenant{
				Name:          args[0],
				EdgeTokens:    tenant.Digests{credential.DigestOf(key.EdgeToken())},
				EnclaveTokens: tenant.Digests{credential.DigestOf(key.EnclaveToken())},
				Limits:        limits,
			}
			for _, san := range sans {
				fresh.SANs = append(fresh.SANs, tenant.SAN(san))
			}
			if certificateOnly {
				if len(sans) == 0 {
					return errors.New("--certificate-only needs --san: without one nobody could come as this tenant")
				}
				fresh.EdgeTokens = tenant.Digests{}
			}
			if cmd.Flags().Changed("models") {
				fresh.Models = models
			}
			if cmd.Flags().Changed("regions") {
				fresh.Regions = regions
			}
			err = editList(cmd, func(l *tenant.List) error { return addTenant(l, fresh, anotherKey) })
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.ErrOrStderr(), key.Text())
			return nil
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&models, "models", nil, "models that it may ask for (default all)")
	f.StringSliceVar(&regions, "regions", nil, "regions that its data may not leave (default all)")
	f.IntVar(&limits.RequestsPerSecond, "requests-per-second", 0, "requests that it may send per second (default any number)")
	f.IntVar(&limits.TokensPerMinute, "tokens-per-minute", 0, "tokens, of prompts and the most that answers may have, that it may use per minute (default any number)")
	f.IntVar(&limits.Weight, "weight", 0, "its share while nothing is free, beside that of others (default 1)")
	f.StringArrayVar(&sans, "san", nil, "name in its client's certificate: uri:spiffe://… or dns:…, of a CA that mrgc.yaml's tenant_client_ca has (repeat)")
	f.BoolVar(&certificateOnly, "certificate-only", false, "its API key does not open Envoy's door, only a certificate does")
	f.BoolVar(&anotherKey, "another-key", false, "the tenant is there: give it one more API key, beside those that it has")
	for _, rule := range []string{"models", "regions", "requests-per-second", "tokens-per-minute", "weight", "certificate-only"} {
		cmd.MarkFlagsMutuallyExclusive("another-key", rule)
	}
	return cmd
}

// addTenant adds a tenant, or its tokens to one that is there.
func addTenant(l *tenant.List, fresh tenant.Tenant, anotherKey bool) error {
	i := slices.IndexFunc(l.Tenants, func(t tenant.Tenant) bool { return t.Name == fresh.Name })
	switch {
	case anotherKey && i < 0:
		return fmt.Errorf("there is no tenant %s: leave --another-key out to add it", fresh.Name)
	case anotherKey && l.Tenants[i].Revoked:
		return fmt.Errorf("tenant %s is revoked, another key would not change that: names are not used again", fresh.Name)
	case anotherKey:
		if len(l.Tenants[i].EdgeTokens) > 0 { // else only its certificate opens the door
			l.Tenants[i].EdgeTokens = append(l.Tenants[i].EdgeTokens, fresh.EdgeTokens...)
		}
		l.Tenants[i].EnclaveTokens = append(l.Tenants[i].EnclaveTokens, fresh.EnclaveTokens...)
		l.Tenants[i].SANs = append(l.Tenants[i].SANs, fresh.SANs...)
	case i >= 0:
		return fmt.Errorf("tenant %s is there already: --another-key gives it one more API key", fresh.Name)
	default:
		l.Tenants = append(l.Tenants, fresh)
	}
	return nil
}

func tenantsRevokeCommand() *cobra.Command {
	var oldKeys bool
	var san string
	cmd := &cobra.Command{
		Use:   "revoke NAME",
		Short: "Serve a tenant no more, or its old API keys, or a name of its certificates",
		Long: `Revoke takes effect when the list is signed. A tenant that is revoked stays on
the list, and its name is not used again.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return editList(cmd, func(l *tenant.List) error {
				i := slices.IndexFunc(l.Tenants, func(t tenant.Tenant) bool { return t.Name == args[0] })
				if i < 0 {
					return fmt.Errorf("there is no tenant %s", args[0])
				}
				t := &l.Tenants[i]
				switch {
				case oldKeys:
					t.EdgeTokens, t.EnclaveTokens = t.EdgeTokens[max(len(t.EdgeTokens)-1, 0):], t.EnclaveTokens[len(t.EnclaveTokens)-1:]
				case san != "":
					k := slices.Index(t.SANs, tenant.SAN(san))
					if k < 0 {
						return fmt.Errorf("tenant %s has no %s", t.Name, san)
					}
					t.SANs = slices.Delete(t.SANs, k, k+1)
				default:
					t.Revoked = true
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&oldKeys, "old-keys", false, "revoke all of its API keys but the newest")
	cmd.Flags().StringVar(&san, "san", "", "revoke this name of its certificates alone")
	cmd.MarkFlagsMutuallyExclusive("old-keys", "san")
	return cmd
}

func tenantsSignCommand() *cobra.Command {
	var keyPath, out string
	var valid time.Duration
	cmd := &cobra.Command{
		Use:   "sign",
		Short: "Sign the list: what routers, parents and enclaves take",
		Long: `Sign raises the list's version by one, sets its expiry, and writes it signed, as
a whole, for the parts of the cluster to take within seconds. Sign again before it
expires, changed or not: an hour later nobody would be served.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if valid <= 0 {
				return fmt.Errorf("--valid %v: want more than nothing", valid)
			}
			key, err := readSigningKey(keyPath)
			if err != nil {
				return err
			}
			var signed []byte
			var version uint64
			err = editList(cmd, func(l *tenant.List) (err error) {
				l.Version, l.ExpiresAt = l.Version+1, time.Now().Add(valid).UTC().Truncate(time.Second)
				version = l.Version
				signed, err = tenant.Sign(key, l)
				return err
			})
			if err != nil {
				return err
			}
			if err := replaceFile(out, signed); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "version %d is in %s\n", version, out)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&keyPath, "key", "", "PEM file of the signing key")
	f.StringVar(&out, "out", "tenants.signed.json", "where the signed list goes")
	f.DurationVar(&valid, "valid", 7*24*time.Hour, "how long it holds: as long may somebody who withholds the next one from an enclave keep a revoked tenant served there")
	required(cmd, "key")
	return cmd
}

func tenantsListCommand() *cobra.Command {
	var signed, verify string
	var o output
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Show the list, or what is signed",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			l, err := readList(cmd, signed, verify)
			if err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), l, func(w io.Writer) error { return writeTenants(w, l, time.Now()) })
		},
	}
	f := cmd.Flags()
	o.flag(cmd, f)
	f.StringVar(&signed, "signed", "", "show what is in this signed file, if it is genuine")
	f.StringVar(&verify, "verify-key", "", "PEM file of the key that verifies it")
	cmd.MarkFlagsRequiredTogether("signed", "verify-key")
	return cmd
}

func readList(cmd *cobra.Command, signed, verify string) (*tenant.List, error) {
	if signed == "" {
		return loadList(listPath(cmd))
	}
	keys, err := readVerificationKeys("--verify-key", verify)
	if err != nil {
		return nil, err
	}
	file, err := os.ReadFile(signed)
	if err != nil {
		return nil, fmt.Errorf("--signed: %w", err)
	}
	return tenant.Verify(keys, file)
}

// writeTenants is the list for people.
func writeTenants(w io.Writer, l *tenant.List, now time.Time) error {
	switch {
	case l.Version == 0:
		fmt.Fprintln(w, "never signed")
	case now.Before(l.ExpiresAt):
		fmt.Fprintf(w, "version %d, expires %s\n", l.Version, l.ExpiresAt.Format(time.RFC3339))
	default:
		fmt.Fprintf(w, "version %d, EXPIRED %s: sign it again\n", l.Version, l.ExpiresAt.Format(time.RFC3339))
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "TENANT\tSTATE\tKEYS\tCERTIFICATES\tMODELS\tREGIONS\tREQUESTS/S\tTOKENS/MIN\tWEIGHT")
	for _, t := range l.Tenants {
		state := "active"
		if t.Revoked {
			state = "revoked"
		}
		fmt.Fprintf(table, "%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t%d\n", t.Name, state, len(t.EnclaveTokens), sansText(&t), namesText(t.Models), namesText(t.Regions),
			limitText(t.RequestsPerSecond), limitText(t.TokensPerMinute), t.Share())
	}
	return table.Flush()
}

// sansText are the names of a tenant's certificates.
func sansText(t *tenant.Tenant) string {
	if len(t.SANs) == 0 {
		return "none"
	}
	texts := make([]string, len(t.SANs))
	for i, san := range t.SANs {
		texts[i] = string(san)
	}
	text := strings.Join(texts, ",")
	if len(t.EdgeTokens) == 0 {
		text += " only"
	}
	return text
}

func namesText(n tenant.Names) string {
	switch {
	case n == nil:
		return "all"
	case len(n) == 0:
		return "none"
	}
	return strings.Join(n, ",")
}

func limitText(limit int) string {
	if limit == 0 {
		return "any"
	}
	return strconv.Itoa(limit)
}

func listPath(cmd *cobra.Command) string { return cmd.Flag(listFlag).Value.String() }

func loadList(path string) (*tenant.List, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	l, err := tenant.ParseList(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return l, nil
}

// editList changes the list, or makes one. What would not be a list any more is
// an error, and the one before stays.
func editList(cmd *cobra.Command, change func(*tenant.List) error) error {
	path := listPath(cmd)
	l, err := loadList(path)
	if errors.Is(err, fs.ErrNotExist) {
		l, err = &tenant.List{Tenants: []tenant.Tenant{}}, nil
	}
	if err != nil {
		return err
	}
	if err := change(l); err != nil {
		return err
	}
	text, err := l.Marshal()
	if err != nil {
		return err
	}
	if _, err := tenant.ParseList(text); err != nil {
		return err
	}
	return replaceFile(path, text)
}

// replaceFile puts a whole file in the place of another: nobody reads a half.
func replaceFile(path string, content []byte) error {
	fresh, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = fresh.Write(content)
	if err = errors.Join(err, fresh.Sync(), fresh.Close()); err == nil {
		err = os.Rename(fresh.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(fresh.Name()))
	}
	return nil
}
