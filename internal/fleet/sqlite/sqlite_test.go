package sqlite_test

import (
	"context"
	"database/sql"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gbytes"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/fleet/sqlite"
	"github.com/mrgc/mrgc/internal/fleet/storetest"
)

var _ = storetest.Describe("sqlite", func() storetest.Open {
	path := storePath()
	return func(ctx context.Context, clock func() time.Time) (fleet.Store, error) {
		return sqlite.Open(ctx, sqlite.Config{Path: path, Clock: clock})
	}
})

var _ = Describe("The file", func() {
	It("is its owner's alone, logs included, and nothing else is left beside it", func(ctx SpecContext) {
		path := storePath()
		store := open(ctx, path)
		Expect(store.Register(ctx, instance("a"))).To(Succeed())
		Expect(modes(filepath.Dir(path))).To(Equal(map[string]os.FileMode{
			"fleet.db": 0o600, "fleet.db-wal": 0o600, "fleet.db-shm": 0o600,
		}))
		Expect(store.Close()).To(Succeed())
		Expect(modes(filepath.Dir(path))).To(Equal(map[string]os.FileMode{"fleet.db": 0o600}))
	})

	It("may have any name", func(ctx SpecContext) {
		path := filepath.Join(GinkgoT().TempDir(), "50% of a b?mode=memory&c#d.db")
		Expect(open(ctx, path).Register(ctx, instance("a"))).To(Succeed())
		Expect(path).To(BeARegularFile())
		Expect(storetest.Instances(ctx, open(ctx, path))).To(HaveLen(1))
	})

	It("is created once by many who come together", func(ctx SpecContext) {
		path := storePath()
		var running sync.WaitGroup
		for i := range 8 {
			running.Go(func() {
				defer GinkgoRecover()
				Expect(open(ctx, path).Register(ctx, instance("i"+string(rune('a'+i))))).To(Succeed())
			})
		}
		running.Wait()
		Expect(storetest.Instances(ctx, open(ctx, path))).To(HaveLen(8))
	})

	DescribeTable("is refused, and left as it was, when it is",
		func(ctx SpecContext, make func(path string), hint string) {
			path := storePath()
			make(path)
			before, _ := os.ReadFile(path)
			_, err := sqlite.Open(ctx, sqlite.Config{Path: path})
			Expect(err).To(MatchError(And(HavePrefix("fleet store "+path+": "), ContainSubstring(hint))))
			after, _ := os.ReadFile(path)
			Expect(after).To(Equal(before))
		},
		Entry("no database", func(path string) {
			writeFile(path, strings.Repeat("not a database\n", 100))
		}, "not a fleet store: name another path"),
		Entry("empty", func(path string) { writeFile(path, "") }, "or an empty one"),
		Entry("another program's database", func(path string) {
			execSQL(path, "PRAGMA user_version = 2", "CREATE TABLE instances (id TEXT)")
		}, "another program's SQLite file"),
		Entry("of a newer version", func(path string) {
			closeStore(path)
			execSQL(path, "PRAGMA user_version = 5")
		}, "newer mrgc (schema 5, this one knows 4)"),
		Entry("of no version", func(path string) {
			closeStore(path)
			execSQL(path, "PRAGMA user_version = 0")
		}, "damaged, or written by an older mrgc: schema 0"),
		Entry("open to others", func(path string) {
			closeStore(path)
			Expect(os.Chmod(path, 0o640)).To(Succeed())
		}, "mode 0640): chmod 600 it"),
		Entry("a directory", func(path string) {
			Expect(os.Mkdir(path, 0o700)).To(Succeed())
		}, "not a regular file"),
		Entry("gone but for its log", func(path string) {
			writeFile(path+"-wal", "")
		}, "remove the -wal and -shm files too"),
		Entry("in no directory", func(path string) {
			Expect(os.Remove(filepath.Dir(path))).To(Succeed())
		}, "create it first"),
	)

	It("needs a path", func(ctx SpecContext) {
		_, err := sqlite.Open(ctx, sqlite.Config{})
		Expect(err).To(MatchError(ContainSubstring("no usable path")))
	})
})

var _ = Describe("A running store whose file", func() {
	It("is gone keeps trying, says so once, and goes on when it is back", func(ctx SpecContext) {
		path := storePath()
		log := gbytes.NewBuffer()
		store := openWith(ctx, sqlite.Config{Path: path, Logger: slog.New(slog.NewTextHandler(log, nil))})
		Expect(store.Register(ctx, instance("a"))).To(Succeed())
		snapshots := storetest.Watch(ctx, store)
		Eventually(snapshots).Should(Receive())

		Expect(os.Rename(path, path+".away")).To(Succeed())
		Expect(store.Heartbeat(ctx, fleet.Heartbeat{ID: "a"})).To(MatchError(ContainSubstring("file is gone")))
		Expect(path).NotTo(BeAnExistingFile())
		Eventually(log).Should(gbytes.Say("fleet store cannot be read.*\n"))
		Consistently(log, time.Second).ShouldNot(gbytes.Say("."))
		Expect(snapshots).NotTo(Receive())

		Expect(os.Rename(path+".away", path)).To(Succeed())
		Eventually(snapshots, "10s").Should(Receive(HaveField("Instances", HaveLen(1))))
		Eventually(log).Should(gbytes.Say("can be read again.*\n"))
		Expect(store.Heartbeat(ctx, fleet.Heartbeat{ID: "a"})).To(Succeed())
		Expect(log).NotTo(gbytes.Say("."))
	})

	It("is replaced by another store uses that one", func(ctx SpecContext) {
		path, other := storePath(), storePath()
		store := open(ctx, path)
		Expect(store.Register(ctx, instance("a"))).To(Succeed())
		snapshots := storetest.Watch(ctx, store)
		Eventually(snapshots).Should(Receive(HaveField("Instances", HaveLen(1))))

		closeStore(other)
		Expect(os.Remove(path + "-wal")).To(Succeed())
		Expect(os.Remove(path + "-shm")).To(Succeed())
		Expect(os.Rename(other, path)).To(Succeed())
		Eventually(snapshots).Should(Receive(HaveField("Instances", BeEmpty())))
		Expect(store.Heartbeat(ctx, fleet.Heartbeat{ID: "a"})).To(MatchError(fleet.ErrNotFound))
		Expect(store.Register(ctx, instance("a"))).To(Succeed())
		Expect(storetest.Instances(ctx, open(ctx, path))).To(HaveLen(1))
	})

	It("is replaced by something else refuses it", func(ctx SpecContext) {
		path := storePath()
		store := open(ctx, path)
		Expect(os.Rename(path, path+".away")).To(Succeed())
		writeFile(path, "garbage")
		Expect(store.Register(ctx, instance("a"))).To(MatchError(ContainSubstring("not a fleet store")))
	})

	It("is locked by a writer waits as long as its context allows", func(ctx SpecContext) {
		path := storePath()
		store := open(ctx, path)
		Expect(store.Register(ctx, instance("a"))).To(Succeed())
		db := openSQL(path)
		tx, err := db.Conn(ctx)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(tx.Close)
		_, err = tx.ExecContext(ctx, "BEGIN IMMEDIATE")
		Expect(err).NotTo(HaveOccurred())

		short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		Expect(store.Heartbeat(short, fleet.Heartbeat{ID: "a"})).To(MatchError(context.DeadlineExceeded))
		Expect(storetest.Instances(ctx, store)).To(ConsistOf(HaveField("Version", int64(1))), "readers do not wait")
		_, err = tx.ExecContext(ctx, "ROLLBACK")
		Expect(err).NotTo(HaveOccurred())
		Expect(store.Heartbeat(ctx, fleet.Heartbeat{ID: "a"})).To(Succeed())
	})
})

func storePath() string { return filepath.Join(GinkgoT().TempDir(), "fleet.db") }

func open(ctx context.Context, path string) *sqlite.Store {
	GinkgoHelper()
	return openWith(ctx, sqlite.Config{Path: path})
}

func openWith(ctx context.Context, cfg sqlite.Config) *sqlite.Store {
	GinkgoHelper()
	store, err := sqlite.Open(ctx, cfg)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(store.Close)
	return store
}

// closeStore leaves an empty store at path.
func closeStore(path string) {
	GinkgoHelper()
	Expect(open(context.Background(), path).Close()).To(Succeed())
}

func instance(id string) fleet.Instance {
	return fleet.Instance{ID: id, Region: "use1", Address: "127.0.0.1:8080"}
}

func writeFile(path, content string) {
	GinkgoHelper()
	Expect(os.WriteFile(path, []byte(content), 0o600)).To(Succeed())
}

func openSQL(path string) *sql.DB {
	GinkgoHelper()
	db, err := sql.Open("sqlite", path)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(db.Close)
	return db
}

func execSQL(path string, statements ...string) {
	GinkgoHelper()
	db := openSQL(path)
	for _, statement := range statements {
		_, err := db.Exec(statement)
		Expect(err).NotTo(HaveOccurred())
	}
	Expect(db.Close()).To(Succeed())
	Expect(os.Chmod(path, 0o600)).To(Succeed())
}

func modes(dir string) map[string]os.FileMode {
	GinkgoHelper()
	entries, err := os.ReadDir(dir)
	Expect(err).NotTo(HaveOccurred())
	modes := make(map[string]os.FileMode)
	for _, entry := range entries {
		info, err := entry.Info()
		Expect(err).NotTo(HaveOccurred())
		modes[entry.Name()] = info.Mode()
	}
	return modes
}
