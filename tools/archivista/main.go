// Command archivista is Archivista's own server, built from its module for the
// tests of store/archivista: its HTTP handlers, its GraphQL resolvers, its
// metadata store and its file store. Only the database differs: Archivista
// opens MySQL or PostgreSQL, and this opens SQLite through the same object
// mapper, so that the tests need no database server.
//
//	archivista FOLDER
//
// It keeps everything in FOLDER, listens on a free port of the loopback
// interface, prints the URL as its first line and ends when its standard input
// does.
package main

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"entgo.io/ent/dialect"
	entsql "entgo.io/ent/dialect/sql"
	"github.com/in-toto/archivista/ent"
	"github.com/in-toto/archivista/pkg/config"
	"github.com/in-toto/archivista/pkg/metadatastorage/sqlstore"
	"github.com/in-toto/archivista/pkg/objectstorage/filestore"
	"github.com/in-toto/archivista/pkg/server"
	_ "modernc.org/sqlite" // registers the driver "sqlite"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: archivista FOLDER")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "archivista:", err)
		os.Exit(1)
	}
}

func run(folder string) error {
	db, err := sql.Open("sqlite", "file:"+filepath.Join(folder, "metadata.db")+
		"?_pragma=foreign_keys(1)&_pragma=journal_mode(WAL)&_pragma=busy_timeout(10000)&_txlock=immediate")
	if err != nil {
		return err
	}
	// SQLite has one writer at a time; queueing here spares the retries.
	db.SetMaxOpenConns(1)
	client := ent.NewClient(ent.Driver(entsql.OpenDB(dialect.SQLite, db)))
	metadata, _, err := sqlstore.New(context.Background(), client)
	if err != nil {
		return err
	}
	objects := filepath.Join(folder, "objects")
	if err := os.MkdirAll(objects, 0o700); err != nil {
		return err
	}
	// The file store serves its folder on a port of its own, which nobody asks.
	files, _, err := filestore.New(context.Background(), objects, "127.0.0.1:0")
	if err != nil {
		return err
	}
	srv, err := server.New(&config.Config{EnableSQLStore: true, EnableGraphql: true},
		server.WithMetadataStore(metadata), server.WithObjectStore(files),
		server.WithEntSqlClient(metadata.GetClient()))
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	fmt.Printf("http://%s\n", listener.Addr())
	return http.Serve(listener, srv.Router())
}
